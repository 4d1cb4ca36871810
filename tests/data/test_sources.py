import json

import pytest

from t2l_jax.data import words
from t2l_jax.data.sources import read_mixture, read_tasks
from t2l_jax.errors import UserError


def write_tasks(folder, names, use="train"):
    line = json.dumps({"input": "a", "output": "b"}) + "\n"
    for name in names:
        path = folder / name
        path.mkdir(parents=True)
        (path / "task.yaml").write_text(json.dumps({"name": name, "descriptions": ["Do it."], "use": use}))
        for file in ("train.jsonl", "test.jsonl"):
            (path / file).write_text(line)
    return str(folder)


def names(tasks):
    return [task.name for task in tasks]


def test_the_splits_of_a_folder(tmp_path):
    write_tasks(tmp_path, ["a", "b"])
    splits = read_tasks(write_tasks(tmp_path, ["c"], "test"))
    assert {name: names(tasks) for name, tasks in splits.items()} == {"train": ["a", "b"], "unseen tasks": ["c"]}


def test_the_splits_of_the_words_family():
    splits = read_tasks("words")
    assert list(splits) == ["train", "unseen combinations"]
    assert names(splits["train"]) == [words.task_name(c) for c in words.split_combinations()[0]]
    assert names(splits["unseen combinations"]) == [words.task_name(c) for c in words.split_combinations()[1]]


def test_sources_are_put_together_and_drawn_by_weight(tmp_path):
    first = write_tasks(tmp_path / "x", ["a", "b", "c"])
    second = write_tasks(tmp_path / "y", ["d"])
    write_tasks(tmp_path / "y", ["e"], "test")
    splits, weights = read_mixture((first, second), (3.0, 1.0))
    assert names(splits["train"]) == ["a", "b", "c", "d"]
    assert names(splits["unseen tasks"]) == ["e"]
    assert weights == (1.0, 1.0, 1.0, 1.0)
    assert read_mixture((first, second), (1.0, 2.0))[1] == (1 / 3, 1 / 3, 1 / 3, 2.0)
    assert read_mixture((first, second))[1] == (1.0,) * 4


def test_test_tasks_alone_are_enough_where_no_training_tasks_are_wanted(tmp_path):
    unseen = write_tasks(tmp_path / "z", ["b"], "test")
    splits, weights = read_mixture((unseen,), (), ("unseen tasks",))
    assert (names(splits["unseen tasks"]), splits["train"], weights) == (["b"], [], ())
    with pytest.raises(UserError, match="task_weights are for tasks of train only"):
        read_mixture((unseen,), (2.0,), ("unseen tasks",))


def test_what_cannot_be_mixed(tmp_path):
    first, second = write_tasks(tmp_path / "x", ["a"]), write_tasks(tmp_path / "y", ["A"])
    unseen = write_tasks(tmp_path / "z", ["b"], "test")
    for sources, weights, message in (
        ((first, second), (), "two tasks have the name"),
        ((first,), (1.0, 2.0), "task_weights: 1 task sources need 1 weights"),
        ((first,), (0.0,), "weights above 0"),
        ((first, unseen), (), "z: holds no task of use `train`"),
        ((str(tmp_path / "absent"),), (), "no such folder of tasks; write `words`"),
        ((), (), "no task source is given"),
    ):
        with pytest.raises(UserError, match=message):
            read_mixture(sources, weights)
