"""Tasks of reasoning-gym, an optional extra: procedural generators of small problems with checked answers.

Taken are generators whose answers are short and exact and whose question can be taken apart, so that the input is the
instance alone ("98, 58") and only the description says what to do with it. Descriptions are our own. Some generators
give several tasks that read the same kind of instance (sorting upwards and downwards). Its syllogisms are left out:
some that it calls valid are not ("All A are B. Some B are not C. So: Some A are not C.").

    pip install '.[reasoning-gym]'

Source: Stojanovski et al., "Reasoning Gym", arXiv 2505.24760.

Examples are a function of the task's name and of the library's version: the i-th never changes. Which side of the
split an instance is on is a function of its text, so no test instance is a training instance of any task.
"""

import zlib
from typing import Any

from t2l_jax.data.gym.generator import GymTask
from t2l_jax.data.gym.number_tasks import NUMBER_TASKS
from t2l_jax.data.gym.puzzle_tasks import PUZZLE_TASKS
from t2l_jax.data.tasks import Example, Task
from t2l_jax.errors import UserError

UNSEEN_WORDINGS = 3
DRAWS = 100  # items drawn for each example wanted, before a generator counts as exhausted
# Never trained on: some have a sibling in training that reads the same instances, some are of a kind of their own.
UNSEEN_TASKS = frozenset(
    {"lcm", "to_hex", "nth_weekday", "sort_words_backward", "keep_smaller", "rotate_half", "missing_angle", "family"}
)


def tasks(n_train: int = 128, n_test: int = 32) -> dict[str, list[Task]]:
    """The tasks of "train" and "unseen tasks", with `n_train` and `n_test` examples each. Takes a few seconds.

    Training examples of the unseen tasks serve oracle adapters only. Raises UserError if reasoning-gym is missing.
    """
    gym = _library()
    splits: dict[str, list[Task]] = {"train": [], "unseen tasks": []}
    for one in (*NUMBER_TASKS, *PUZZLE_TASKS):
        unseen = one.name in UNSEEN_TASKS
        splits["unseen tasks" if unseen else "train"].append(_task(gym, one, n_train, n_test, unseen))
    return splits


def _library() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError("the tasks of reasoning-gym need that library: pip install '.[reasoning-gym]'") from error
    return reasoning_gym


def _task(gym: Any, one: GymTask, n_train: int, n_test: int, unseen: bool) -> Task:
    wordings = tuple(one.wordings.split(" | "))
    train, test = _examples(gym, one, n_train, n_test)
    return Task(
        name=f"gym_{one.name}",
        descriptions=wordings[:-UNSEEN_WORDINGS],
        unseen_descriptions=wordings[-UNSEEN_WORDINGS:],
        train=train,
        test=test,
        use="test" if unseen else "train",
    )


def _examples(gym: Any, one: GymTask, n_train: int, n_test: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """So many (training, test) examples with different inputs, or ValueError where the generator has not got them."""
    draws = DRAWS * (n_train + n_test)
    # An item is drawn from seed + index: seeds of two tasks lie so far apart that their items are not the same.
    items = gym.create_dataset(one.generator, seed=zlib.crc32(one.name.encode()), size=draws, **one.settings)
    train: dict[str, Example] = {}
    test: dict[str, Example] = {}
    for index in range(draws):
        if len(train) == n_train and len(test) == n_test:
            return tuple(train.values()), tuple(test.values())
        item = items[index]
        facts = {**item["metadata"], "story": item["question"].split("\n\n")[0]}
        if not one.keep(facts):
            continue
        shown = one.show(facts)
        side, size = (test, n_test) if zlib.crc32(shown.encode()) % 4 == 0 else (train, n_train)
        if len(side) < size:
            output = one.answer(facts) if one.answer else str(item["answer"])
            side[shown] = Example(shown, output, (output,))
    raise ValueError(f"{one.name}: {len(train)} training and {len(test)} test examples in {draws} draws")
