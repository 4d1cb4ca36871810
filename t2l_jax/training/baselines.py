"""What is trained beside the hypernetwork, to compare it with: by the same step, on the same batches and data.

`one-hot` is the hypernetwork with a task's place in the list as z, in place of text. `multitask` is one LoRA for all
tasks. `oracles` is a table with one LoRA for each task, all trained at once in one program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from t2l_jax.data.batches import TrainingTask
from t2l_jax.data.sources import TRAIN
from t2l_jax.data.tasks import Task, evenly, named_like, refuse_idle, spread
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, Variables
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import LoraSpec
from t2l_jax.training.material import VALIDATION_TASKS
from t2l_jax.training.objectives.sft import Batch
from t2l_jax.training.producers import HypernetProducer, LoraTable

ProducerName = Literal["hypernet", "one-hot", "multitask", "oracles"]
SEEN = "seen"


@dataclass(frozen=True)
class TaskChoice:
    """Which tasks of the sources are trained on."""

    splits: tuple[str, ...] = (TRAIN,)
    """Splits to take tasks from. Others than `train` are for oracles only, which learn from the tasks' own examples."""
    only: tuple[str, ...] = ()
    """Patterns of task names, such as 'sni_*'. Default: all."""
    most: int | None = None
    """At most so many of each split, evenly spread: of one source, those that an evaluation of as many takes.
    Default: all."""
    wordings: int | None = None
    """The first so many descriptions of each. Default: all that are for training."""

    def __post_init__(self) -> None:
        for name in ("most", "wordings"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"choice.{name} must be at least 1, got {value}")


class NoText:
    """In place of a text encoder where descriptions are not read: z is one zero."""

    name = "none"
    dim = 1
    adapter = None
    fingerprint = "none"

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
        """Zeros [texts, 1]."""
        return np.zeros((len(texts), 1), np.float32)


def choose_tasks(
    splits: Mapping[str, Sequence[Task]], weights: Sequence[float], choice: TaskChoice, producer: ProducerName
) -> tuple[list[Task], tuple[float, ...]]:
    """The tasks to train on and how often each is drawn. `weights` are those of the split `train`, 1 elsewhere.

    Raises UserError for an unknown split, one that this producer may not train on, and where no task is left.
    """
    if unknown := sorted(set(choice.splits) - splits.keys()):
        raise UserError(f"choice.splits: there is no split {', '.join(unknown)}: choose among {', '.join(splits)}")
    if set(choice.splits) != {TRAIN} and producer != "oracles":
        raise UserError(f"choice.splits: only oracles may train on other tasks than those of {TRAIN}, not {producer}")
    refuse_idle(choice.only, [task for name in choice.splits for task in splits[name]], "choice.only")
    known = dict(zip((task.name for task in splits[TRAIN]), weights, strict=True))
    found = []
    for name in dict.fromkeys(choice.splits):
        usable = named_like([task for task in splits[name] if task.train], choice.only)
        found += usable if choice.most is None else evenly(usable, choice.most)
    if not found:
        raise UserError("choice: no task with training examples is left: widen --choice.only or --choice.splits")
    chosen = [replace(task, descriptions=task.descriptions[: choice.wordings]) for task in found]
    return chosen, tuple(known.get(task.name, 1.0) for task in found)


def make_producer(
    name: ProducerName, net: HypernetConfig, spec: LoraSpec, num_tasks: int
) -> HypernetProducer | LoraTable:
    """What writes the adapters of a run on so many tasks. Raises UserError where one-hot z meets a codebook."""
    if name == "one-hot" and net.task.kind != "linear":
        raise UserError(f"hypernet.task.kind is {net.task.kind}: a one-hot task identity is read by linear only")
    if name in ("hypernet", "one-hot"):
        return HypernetProducer(net, spec)
    return LoraTable(num_tasks if name == "oracles" else 1, spec)


def one_hot(material: Sequence[TrainingTask]) -> list[TrainingTask]:
    """The tasks with their place in the list, one-hot, in place of their embeddings."""
    rows = np.eye(len(material), dtype=np.float32)
    return [replace(task, embeddings=row[None]) for task, row in zip(material, rows, strict=True)]


def held_out_splits(
    splits: Mapping[str, Sequence[Task]], trained: Sequence[Task], producer: ProducerName
) -> dict[str, Sequence[Task]]:
    """What is validated on: tasks trained on, and the other splits where the producer can be asked for their tasks."""
    if producer in ("one-hot", "oracles"):
        return {SEEN: trained}
    return {SEEN: trained} | {name: tasks for name, tasks in splits.items() if name != TRAIN}


def by_training_row(
    validation: Mapping[str, Sequence[Batch]], trained: Sequence[Task], producer: ProducerName
) -> dict[str, list[Batch]]:
    """Batches of seen tasks whose ids, and one-hot z, are the places of their tasks among those trained on.

    A validation batch's ids number the tasks of its own split.
    """
    if producer not in ("one-hot", "oracles"):
        return {name: list(batches) for name, batches in validation.items()}
    place = {task.name: index for index, task in enumerate(trained)}
    rows = np.asarray([place[task.name] for task in spread(trained, VALIDATION_TASKS)], np.int32)
    width = np.arange(len(trained))

    def moved(batch: Batch) -> Batch:
        ids = rows[np.asarray(batch.task_ids)]
        z = (ids[:, None] == width).astype(np.float32) if producer == "one-hot" else batch.z
        return replace(batch, task_ids=ids, z=z)

    return {name: [moved(batch) for batch in batches] for name, batches in validation.items()}


def save_adapters(
    folder: Path, name: ProducerName, variables: Variables, trained: Sequence[Task], base_name: str
) -> None:
    """PEFT folders of a LoraTable, as `t2l evaluate` reads them: one for each oracle, or one LoRA of all tasks.

    What an earlier end of the run left in the folder is replaced.
    """
    table = variables["params"]
    if name == "multitask":
        save_peft(table[0], folder, base_model=base_name, replace=True)
    else:
        save_peft(table, folder, base_model=base_name, names=[task.name for task in trained], replace=True)
