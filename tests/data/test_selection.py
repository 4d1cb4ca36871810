"""Which tasks a run trains on."""

from dataclasses import replace

import pytest

from t2l_jax.data.selection import TaskSelection, select_tasks
from t2l_jax.data.tasks import Example, Task, spread
from t2l_jax.errors import UserError

EXAMPLE = (Example("x", "y", ("y",)),)


def some(name: str, count: int) -> list[Task]:
    return [Task(f"{name}{number}", ("one", "two", "three"), train=EXAMPLE, test=EXAMPLE) for number in range(count)]


SPLITS = {"train": some("a", 10), "unseen": some("b", 7)}
WEIGHTS = (1.0,) * 10


def test_of_each_task_the_first_wordings_are_trained_on():
    tasks, _ = select_tasks(SPLITS, WEIGHTS, TaskSelection(wordings=2), any_split=False)
    assert {task.descriptions for task in tasks} == {("one", "two")}


def test_tasks_without_training_examples_are_not_trained_on():
    bare = Task("bare", ("do",), train=(), test=EXAMPLE)
    splits = {"train": [bare, replace(bare, name="full", train=EXAMPLE)]}
    tasks, weights = select_tasks(splits, (2.0, 3.0), TaskSelection(), any_split=False)
    assert ([task.name for task in tasks], weights) == (["full"], (3.0,))
    with pytest.raises(UserError, match="selection: no task with training examples is left"):
        select_tasks(splits, (1.0, 1.0), TaskSelection(only=("bare",)), any_split=False)


def test_most_counts_in_each_split_and_takes_what_an_evaluation_takes():
    selection = TaskSelection(splits=("train", "unseen"), most=3)
    tasks, _ = select_tasks(SPLITS, WEIGHTS, selection, any_split=True)
    assert [task.name for task in tasks] == ["a0", "a3", "a6", "b0", "b2", "b4"]
    assert tasks == [*spread(SPLITS["train"], 3), *spread(SPLITS["unseen"], 3)]


def test_what_is_left_out_by_name():
    """A pattern that matches nothing does no harm: its task may have been damaged."""
    selection = TaskSelection(only=("a*",), without=("a[1-8]", "nothing"))
    tasks, weights = select_tasks(SPLITS, [float(n) for n in range(10)], selection, any_split=False)
    assert ([task.name for task in tasks], weights) == (["a0", "a9"], (0.0, 9.0))
    with pytest.raises(UserError, match=r"narrow --selection\.without"):
        select_tasks(SPLITS, WEIGHTS, TaskSelection(without=("a*",)), any_split=False)


@pytest.mark.parametrize(
    ("selection", "any_split", "message"),
    [
        (TaskSelection(splits=("later",)), True, "there is no split later: choose among train, unseen"),
        (TaskSelection(splits=("unseen",)), False, "only oracles may train on other tasks"),
        (TaskSelection(only=("a*", "nothing*")), True, r"selection.only: no task is named like 'nothing\*': correct"),
    ],
)
def test_a_selection_that_cannot_be_trained_on_is_refused(selection, any_split, message):
    with pytest.raises(UserError, match=message):
        select_tasks(SPLITS, WEIGHTS, selection, any_split)


@pytest.mark.parametrize("field", ["most", "wordings"])
def test_a_selection_of_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"selection: field {field}: must be at least 1, got 0"):
        TaskSelection(**{field: 0})
