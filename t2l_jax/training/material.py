"""The data of an SFT run: selected, embedded and tokenised tasks, training batches and validation batches."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import (
    BatchConfig,
    Packed,
    Sampler,
    TokenTable,
    TrainingTask,
    collate,
    fitting,
    pack,
    shortest,
    stack_conditions,
    take,
)
from t2l_jax.data.encoding import encode_all
from t2l_jax.data.prompts import AnswerForm, PromptMode, in_form
from t2l_jax.data.selection import select_tasks
from t2l_jax.data.sources import TRAIN, read_mixture
from t2l_jax.data.tasks import Example, Task, spread
from t2l_jax.encoder import Encoder, embed_instances
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.io.files import cache_folder
from t2l_jax.training.best import BestConfig
from t2l_jax.training.objectives import Objective
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.trainees import Trainee

SEEN = "seen"  # the validation set of training tasks
VALIDATION_TASKS = 64  # per split, evenly spaced
VALIDATION_EXAMPLES = 4  # per task, where each has an adapter of its own


@dataclass(frozen=True)
class Material:
    """Training tasks, the sampler of their batches, and validation batches by validation set."""

    tasks: Sequence[Task]
    sampler: Sampler
    validation: Mapping[str, Sequence[Batch]]
    modes: Sequence[PromptMode]


def conditions_of(
    trainee: type[Trainee],
    encoder: Encoder | None,
    wordings: Sequence[Sequence[str]],
    places: Sequence[int],
    cache: Path,
) -> list[Condition]:
    """The trainee's conditions for tasks with these wordings, at these places among the training tasks (or -1)."""
    z = None
    if encoder is not None and trainee.reads_text:
        read = [text for texts in wordings for text in texts]
        if trainee.reads_tokens:
            assert isinstance(encoder, FlaxEncoder)
            rows: np.ndarray = encoder.token_rows(read)
        else:
            rows = encoder.embed(read, cache / "embeddings")
        z = np.split(rows, np.cumsum([len(texts) for texts in wordings])[:-1])
    return trainee.conditions(wordings, places, z)


@dataclass(frozen=True)
class Reader:
    """Converts tasks to tokens and conditions, caching both in `cache`. `encoder` is None if no text is read.

    Examples of more tokens than `cut` lose the first ones of their prompts; None: none do.
    """

    trainee: type[Trainee]
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder | None
    modes: Sequence[PromptMode]
    cache: Path
    answers: AnswerForm = "first"
    cut: int | None = None

    def conditions(self, wordings: Sequence[Sequence[str]], places: Sequence[int]) -> list[Condition]:
        """See `conditions_of`."""
        return conditions_of(self.trainee, self.encoder, wordings, places, self.cache)

    def instances(self, tasks: Sequence[Task], parts: Sequence[Sequence[Example]]) -> list[np.ndarray]:
        """The embeddings [n, z] of the inputs of some examples of each task. Equal inputs are embedded once.

        Raises UserError that names the task of an example without input.
        """
        assert self.encoder is not None
        for task, examples in zip(tasks, parts, strict=True):
            if any(not example.input.strip() for example in examples):
                raise UserError(f"task {task.name}: an example has an empty input, from which no adapter can be made")
        texts = [example.input for examples in parts for example in examples]
        embedded = embed_instances(self.encoder, texts, self.cache / "embeddings")
        return np.split(embedded, np.cumsum([len(examples) for examples in parts])[:-1])

    def examples(self, tasks: Sequence[Task]) -> list[Mapping[PromptMode, TokenTable]]:
        """Every task's training examples, encoded in every mode.

        With instruction, the prompt of example i holds training wording i modulo their number.
        """
        modes = self.modes
        tables = self._tables([(task, task.train, task.descriptions, mode) for task in tasks for mode in modes])
        return [dict(zip(modes, tables[n * len(modes) :], strict=False)) for n in range(len(tasks))]

    def _tables(self, wanted: Sequence[tuple[Task, Sequence[Example], Sequence[str], PromptMode]]) -> list[TokenTable]:
        """The examples of a task in a mode, which uses the wordings if they stand in its prompts."""
        jobs = [
            (in_form(task, examples, mode, self.answers), wordings if mode == "instruction" else ())
            for task, examples, wordings, mode in wanted
        ]
        tables = encode_all(self.tokenizer, jobs, self.cache / "tokens")
        return tables if self.cut is None else [table.cut(self.cut) for table in tables]

    def training_tasks(self, tasks: Sequence[Task], weights: Sequence[float], length: int) -> list[TrainingTask]:
        """Training data of the tasks with an example that fits in a row; a warning names the others."""
        examples = self.examples(tasks)
        fits = _fitting(tasks, examples, length)
        usable = list(compress(tasks, fits))
        conditions = self.conditions([task.descriptions for task in usable], range(len(usable)))
        instances: list[Any] = [None] * len(usable)
        if self.trainee.reads_instances:
            instances = self.instances(usable, [task.train for task in usable])
        parts = zip(usable, conditions, compress(examples, fits), compress(weights, fits), instances, strict=True)
        return [TrainingTask(task.name, own, tables, weight, z) for task, own, tables, weight, z in parts]

    def validation_batches(
        self, splits: Mapping[str, Sequence[Task]], shape: BatchConfig, places: Mapping[str, int]
    ) -> dict[str, list[Batch]]:
        """Validation batches of each split, with the shape of training batches and rows filled with test examples.

        Examples are taken from the end of a task's test set, since evaluations with few examples use its beginning.

        Description and instruction are a held-out wording if the task has one. If several modes are trained, there is a
        set per split and mode, named "split, mode". All batches have the same number of tasks: the batches of a split
        share its tasks evenly and are padded with tasks without examples. A trainee that reads instances is validated
        on VALIDATION_EXAMPLES of each task, each with an adapter of its own.
        """
        batches: dict[str, list[Batch]] = {}
        for name, tasks in splits.items():
            some = spread(tasks, VALIDATION_TASKS)
            if not some:
                continue
            held_out = [(task.held_out_wording(),) for task in some]
            conditions = self.conditions(held_out, [places.get(task.name, -1) for task in some])
            firsts = [take(own, 0) for own in conditions]
            for mode in self.modes:
                jobs = [(task, task.test, wordings, mode) for task, wordings in zip(some, held_out, strict=True)]
                tables = self._tables(jobs)
                parts = self._validation_parts(some, tables, firsts, shape)
                if parts:
                    key = name if len(self.modes) == 1 else f"{name}, {mode}"
                    batches[key] = _share_evenly(parts, shape)
        return batches

    def _validation_parts(
        self, tasks: Sequence[Task], tables: Sequence[TokenTable], conditions: Sequence[Condition], shape: BatchConfig
    ) -> list[tuple[Packed, Condition]]:
        """The rows of each task with an example that fits, or of each of its last examples; see `fill`."""
        orders = [np.arange(len(table))[::-1] for table in tables]
        if not self.trainee.reads_instances:
            packed = [
                pack(table, order, shape.rows, shape.length, shape.shared_prefix)
                for table, order in zip(tables, orders, strict=True)
            ]
            return [part for part in zip(packed, conditions, strict=True) if any(part[0].rows)]
        chosen = [fitting(*part, VALIDATION_EXAMPLES, shape.length) for part in zip(tables, orders, strict=True)]
        examples = [[task.test[index] for index in some] for task, some in zip(tasks, chosen, strict=True)]
        instances = self.instances(tasks, examples)
        return [
            (Packed((), [[table[index]]]), replace(condition, instance=z))
            for table, some, condition, own in zip(tables, chosen, conditions, instances, strict=True)
            for index, z in zip(some, own, strict=True)
        ]


def _share_evenly(parts: Sequence[tuple[Packed, Condition]], shape: BatchConfig) -> list[Batch]:
    """Batches as large as those of training, which share the parts evenly; empty parts fill the last places."""
    rows = len(parts[0][0].rows)
    size = shape.tasks * shape.rows // rows
    batches = []
    for part in np.array_split(np.arange(len(parts)), -(-len(parts) // size)):
        members = np.resize(part, size).tolist()
        empty = Packed((), [[]] * rows)
        packed = [parts[index][0] if place < len(part) else empty for place, index in enumerate(members)]
        batches.append(collate(packed, stack_conditions([parts[index][1] for index in members]), shape.length))
    return batches


def read_material(
    recipe: Recipe, trainee: type[Trainee], tokenizer: PreTrainedTokenizerBase, encoder: Encoder | None
) -> Material:
    """Read, select, embed and tokenise the tasks of a recipe; warn about examples longer than a row."""
    splits, weights = read_mixture(recipe.tasks, recipe.task_weights, recipe.selection.splits)
    tasks, weights = select_tasks(splits, weights, recipe.selection, trainee.takes_any_split)
    modes = recipe.prompts.modes(recipe.instruction_share)
    cut = recipe.batch.length if recipe.batch.too_long == "cut" else None
    reader = Reader(trainee, tokenizer, encoder, modes, cache_folder(), recipe.prompts.answers, cut)
    rows = reader.training_tasks(tasks, weights, recipe.batch.length)
    places = {row.name: place for place, row in enumerate(rows)}
    tasks = [task for task in tasks if task.name in places]
    sampler = Sampler(rows, recipe.batch, recipe.loop.seed, recipe.instruction_share)
    too_long, count = sampler.too_long
    if too_long:
        share = f"{too_long:,} of {count:,} training examples ({too_long / count:.2%})"
        warnings.warn(f"{share} are longer than a row of {recipe.batch.length} tokens and left out", stacklevel=3)
    held_out: dict[str, Sequence[Task]] = {SEEN: tasks}
    if trainee.takes_new_tasks:
        held_out |= {name: others for name, others in splits.items() if name != TRAIN}
    return Material(tasks, sampler, reader.validation_batches(held_out, recipe.batch, places), modes)


def check_best(best: BestConfig, objective: type[Objective], validation: Mapping[str, Sequence[Batch]]) -> None:
    """Raise UserError if `best` cannot select weights, or would by default do so on held-out tasks."""
    if best.by is None and validation and not next(iter(validation)).startswith(SEEN):
        raise UserError(
            "no training task has test examples, and the tasks that results are reported on must not choose the best "
            f"weights: add some, or name a metric, such as --best.by '{next(iter(validation))}/{objective.best}'"
        )
    if validation:
        best.metric(tuple(validation), objective)
    elif best != BestConfig():
        raise UserError("best: no task has test examples to validate on: add some, or leave best.* out")


def _fitting(tasks: Sequence[Task], examples: Sequence[Mapping[PromptMode, TokenTable]], length: int) -> list[bool]:
    """For each task, whether one of its examples fits in a row; a warning names the tasks without.

    Raises UserError if no task has one.
    """
    fits = [shortest(tables) <= length for tables in examples]
    left_out = [task.name for task, fit in zip(tasks, fits, strict=True) if not fit]
    if len(left_out) == len(tasks):
        raise UserError(f"no task has an example that fits in a row of {length} tokens: raise --batch.length")
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(tasks)} training tasks are left out, since none of their examples fits in a row "
            f"of {length} tokens: {', '.join(left_out)}",
            stacklevel=4,
        )
    return fits
