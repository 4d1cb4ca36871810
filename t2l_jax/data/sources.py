"""Where tasks come from: the built-in family, and folders of tasks; several of them mixed by a ratio.

Every source has a split "train", and any number of others that are never trained on, each with a name that says why.
"""

from collections.abc import Sequence
from pathlib import Path

from t2l_jax.data import family, gym, words
from t2l_jax.data.hub import is_registry, load_registry
from t2l_jax.data.tasks import Task, check_unique, load_tasks
from t2l_jax.errors import UserError

TRAIN = "train"
BUILT_IN = {"words": words.tasks, "family": family.tasks, "gym": gym.tasks}


def read_tasks(source: str) -> dict[str, list[Task]]:
    """The splits of a source: the name of a built-in family, a folder of tasks, or a registry of tasks of the hub."""
    if source in BUILT_IN:
        return BUILT_IN[source]()
    if not Path(source).is_dir():
        names = ", ".join(f"`{name}`" for name in BUILT_IN)
        raise UserError(f"{source}: no such folder of tasks; write {names} for the built-in ones")
    folder = Path(source)
    tasks = load_registry(folder) if is_registry(folder) else load_tasks(folder)
    return {
        TRAIN: [task for task in tasks if task.use == "train"],
        "unseen tasks": [task for task in tasks if task.use == "test"],
    }


def read_mixture(
    sources: Sequence[str], weights: Sequence[float] = (), wanted: Sequence[str] = (TRAIN,)
) -> tuple[dict[str, list[Task]], tuple[float, ...]]:
    """The splits of all sources together, and how often each training task is drawn next to the others.

    With `weights`, one for each source, the sources' tasks are drawn in that ratio; without, every task as often as
    any other. Raises UserError where the split "train" is wanted and a source has no task there, where other splits
    are wanted with weights, and where two tasks have one name.
    """
    if weights and (len(weights) != len(sources) or min(weights) <= 0):
        raise UserError(f"{len(sources)} sources of tasks need as many weights above 0, got {list(weights)}")
    if weights and set(wanted) != {TRAIN}:
        raise UserError(f"task_weights are for tasks of {TRAIN} only: leave them out, or choice.splits")
    splits: dict[str, list[Task]] = {TRAIN: []}
    chances: list[float] = []
    for index, source in enumerate(sources):
        own = read_tasks(source)
        if not own[TRAIN] and TRAIN in wanted:
            raise UserError(f"{source}: holds no task of use `train`: there is nothing to train on")
        weight = weights[index] / len(own[TRAIN]) if weights else 1.0
        chances += [weight] * len(own[TRAIN])
        for name, tasks in own.items():
            splits.setdefault(name, []).extend(tasks)
    if not sources:
        raise UserError("no source of tasks is given: name one with --tasks")
    check_unique([task for tasks in splits.values() for task in tasks])
    return splits, tuple(chances)
