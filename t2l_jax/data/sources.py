"""Task sources: the built-in ones, folders of tasks and registries, mixed with given weights.

Every source has a split "train" and any number of held-out splits, whose names say what is new in them.
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
    """The splits of a task source: a built-in name, a folder of tasks, or a registry of tasks on the hub."""
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
    """The merged splits of all sources, and the relative sampling frequency of each training task.

    With `weights`, one per source, sources are drawn in that ratio; without, all tasks are equally likely. Raises
    UserError if "train" is wanted and a source has no training tasks, if other splits are wanted with weights, or if
    two tasks share a name.
    """
    if weights and (len(weights) != len(sources) or min(weights) <= 0):
        raise UserError(
            f"task_weights: {len(sources)} task sources need {len(sources)} weights above 0, got {list(weights)}"
        )
    if weights and set(wanted) != {TRAIN}:
        raise UserError(
            f"task_weights are for tasks of {TRAIN} only: leave out one of task_weights and selection.splits"
        )
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
        raise UserError("no task source is given: name one with --tasks")
    check_unique([task for tasks in splits.values() for task in tasks])
    return splits, tuple(chances)
