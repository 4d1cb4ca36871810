"""Selection of the training tasks from the task sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from t2l_jax.data.sources import TRAIN
from t2l_jax.data.tasks import Task, evenly, named_like, refuse_unmatched
from t2l_jax.errors import UserError
from t2l_jax.schema import Count, check_fields


@dataclass(frozen=True)
class TaskSelection:
    """Which tasks to train on."""

    splits: tuple[str, ...] = (TRAIN,)
    """Splits to take tasks from. Splits other than `train` are for oracles only."""
    only: tuple[str, ...] = ()
    """Use only tasks whose names match these patterns, such as 'sni_*'. Default: all."""
    without: tuple[str, ...] = ()
    """Leave out tasks whose names match these patterns; one that matches nothing does no harm."""
    most: Count | None = None
    """Maximum number of tasks per split, evenly spaced. With one source these are the tasks that `t2l evaluate
    --max-tasks` takes. Default: all."""
    wordings: Count | None = None
    """Number of training descriptions per task, taken in order. Default: all."""

    def __post_init__(self) -> None:
        check_fields(self, "selection")


def select_tasks(
    splits: Mapping[str, Sequence[Task]], weights: Sequence[float], selection: TaskSelection, any_split: bool
) -> tuple[list[Task], tuple[float, ...]]:
    """The tasks to train on and their sampling weights. `weights` belong to the split `train`; other tasks weigh 1.

    Raises UserError if a split is unknown, if one other than `train` is selected without `any_split`, or if no task is
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
        usable = [task for task in usable if not (selection.without and named_like([task], selection.without))]
        selected += usable if selection.most is None else evenly(usable, selection.most)
    if not selected:
        raise UserError(
            "selection: no task with training examples is left: widen --selection.only or --selection.splits, or "
            "narrow --selection.without"
        )
    tasks = [replace(task, descriptions=task.descriptions[: selection.wordings]) for task in selected]
    return tasks, tuple(known.get(task.name, 1.0) for task in tasks)
