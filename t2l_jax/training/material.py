"""From tasks to what a run reads of them: encoded examples, embedded descriptions, batches to validate on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.batches import BatchConfig, Packed, TrainingTask, collate, pack
from t2l_jax.data.encoding import encode_all
from t2l_jax.data.prompts import PromptMode
from t2l_jax.data.tasks import Task, spread
from t2l_jax.encoder import Encoder
from t2l_jax.errors import UserError
from t2l_jax.training.objectives.sft import Batch

VALIDATION_TASKS = 64  # of each split, evenly spread


def prompt_modes(instruction_share: float) -> tuple[PromptMode, ...]:
    """The modes that occur where this share of the examples have an instruction in their prompt."""
    if not 0 <= instruction_share <= 1:
        raise UserError(f"instruction_share must be between 0 and 1, got {instruction_share}")
    instance: tuple[PromptMode, ...] = ("instance",) if instruction_share < 1 else ()
    return (*instance, "instruction") if instruction_share > 0 else instance


def training_tasks(
    tasks: Sequence[Task],
    weights: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    modes: Sequence[PromptMode],
    cache: Path,
) -> list[TrainingTask]:
    """The tasks with their training examples encoded in these modes; `cache` is a folder for what takes long.

    With instruction, example i has the task's i-th training wording in its prompt, beginning again after the last.
    """
    sizes = [len(task.descriptions) for task in tasks]
    z = encoder.embed([text for task in tasks for text in task.descriptions], cache / "embeddings")
    pieces = np.split(z, np.cumsum(sizes)[:-1])
    jobs = [(task.train, task.descriptions if mode == "instruction" else ()) for task in tasks for mode in modes]
    tables = encode_all(tokenizer, jobs, cache / "tokens")
    return [
        TrainingTask(task.name, piece, dict(zip(modes, tables[index * len(modes) :], strict=False)), weight)
        for index, (task, piece, weight) in enumerate(zip(tasks, pieces, weights, strict=True))
    ]


def validation_batches(
    splits: Mapping[str, Sequence[Task]],
    shape: BatchConfig,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    modes: Sequence[PromptMode],
    cache: Path,
) -> dict[str, list[Batch]]:
    """Test examples of each split, as many of each task as its rows hold, in batches of the shape of training's.

    They are taken from the end of a task's test examples: an evaluation of a few reports on the first ones.

    Description and instruction are a wording that is not trained on, where the task has one. Where more than one mode
    is trained, each split comes in each mode, its name followed by the mode's. All batches have as many tasks: those
    of a split share its tasks evenly, and are filled up with tasks without examples.
    """
    found = {}
    for name, tasks in splits.items():
        some = spread(tasks, VALIDATION_TASKS)
        if not some:
            continue
        z = encoder.embed([task.held_out_wording() for task in some], cache / "embeddings")
        for mode in modes:
            wordings = [(task.held_out_wording(),) if mode == "instruction" else () for task in some]
            jobs = [(task.test, wording) for task, wording in zip(some, wordings, strict=True)]
            tables = encode_all(tokenizer, jobs, cache / "tokens")
            packed = [pack(table, np.arange(len(table))[::-1], shape.rows, shape.length) for table in tables]
            usable = [index for index, task in enumerate(packed) if any(task.rows)]
            parts = np.array_split(np.asarray(usable), -(-len(usable) // shape.tasks)) if usable else []
            batches = []
            for part in parts:
                ids = np.resize(part, shape.tasks)  # a batch is filled up with its own tasks, without examples
                empty = Packed((), [[]] * shape.rows)
                filled = [packed[index] if place < len(part) else empty for place, index in enumerate(ids)]
                batches.append(collate(filled, z[ids], ids, shape.length))
            if batches:
                found[name if len(modes) == 1 else f"{name}, {mode}"] = batches
    return found
