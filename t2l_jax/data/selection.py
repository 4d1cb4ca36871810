"""Which of the tasks of the sources a run trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from t2l_jax.data.sources import TRAIN
from t2l_jax.data.tasks import Task, evenly, named_like, refuse_unmatched
from t2l_jax.errors import UserError


@dataclass(frozen=True)
class TaskSelection:
    """Which tasks of the sources are trained on."""

    splits: tuple[str, ...] = (TRAIN,)
    """Splits to take tasks from. Any but `train` are for oracles only, which learn from the tasks' own examples."""
    only: tuple[str, ...] = ()
    """Patterns of task names, such as 'sni_*'. Default: all."""
    most: int | None = None
    """Use at most this many tasks per split, evenly spaced: of one source those that `t2l evaluate --max-tasks` takes.
    Default: all."""
    wordings: int | None = None
    """Use the first this many descriptions of each task. Default: all that are for training."""

    def __post_init__(self) -> None:
        for name in ("most", "wordings"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"selection.{name} must be at least 1, got {value}")


def select_tasks(
    splits: Mapping[str, Sequence[Task]], weights: Sequence[float], selection: TaskSelection, any_split: bool
) -> tuple[list[Task], tuple[float, ...]]:
    """The tasks to train on and how often each is drawn. `weights` are those of the split `train`, 1 elsewhere.

    Raises UserError for an unknown split, for one that may not be trained on (unless `any_split`), and if no task is
    left.
    """
    if unknown := sorted(set(selection.splits) - splits.keys()):
        raise UserError(f"selection.splits: there is no split {', '.join(unknown)}: choose among {', '.join(splits)}")
    if set(selection.splits) != {TRAIN} and not any_split:
        raise UserError(f"selection.splits: only oracles may train on other tasks than those of {TRAIN}")
    refuse_unmatched(selection.only, [task for name in selection.splits for task in splits[name]], "selection.only")
    known = dict(zip((task.name for task in splits[TRAIN]), weights, strict=True))
    selected: list[Task] = []
    for name in dict.fromkeys(selection.splits):
        usable = named_like([task for task in splits[name] if task.train], selection.only)
        selected += usable if selection.most is None else evenly(usable, selection.most)
    if not selected:
        raise UserError(
            "selection: no task with training examples is left: widen --selection.only or --selection.splits"
        )
    tasks = [replace(task, descriptions=task.descriptions[: selection.wordings]) for task in selected]
    return tasks, tuple(known.get(task.name, 1.0) for task in tasks)
