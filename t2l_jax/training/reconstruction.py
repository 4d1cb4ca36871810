"""Prepares a run of reconstruction: a library of adapters, and the descriptions of its tasks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from t2l_jax.data.batches import slot_generator, stack_conditions, take
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import evenly
from t2l_jax.encoder import Encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.io.files import cache_folder
from t2l_jax.io.library import Library, open_library
from t2l_jax.io.published import model_folder, read_config
from t2l_jax.sharding import local_slots
from t2l_jax.training.loop import Batches
from t2l_jax.training.material import conditions_of
from t2l_jax.training.objectives import Reconstruction, TargetBatch
from t2l_jax.training.prepared import Prepared
from t2l_jax.training.recipe import ReconstructionRecipe
from t2l_jax.training.trainees import Trainee

SEEN, HELD_OUT = "seen", "held-out tasks"  # validation sets
VALIDATION_TASKS = 64  # of each set, evenly spaced


@dataclass(frozen=True)
class Wordings:
    """Descriptions of one task: those to train on, and one for validation."""

    train: tuple[str, ...]
    unseen: str


@dataclass(frozen=True)
class TargetSampler:
    """Draws tasks of a library, and one condition of each. The batch of step n is a function of (seed, n) alone."""

    library: Library
    rows: np.ndarray  # the training tasks' places in the library
    conditions: Sequence[Condition]  # [n] of each training task
    count: int
    seed: int

    def draw(self, step: int, slots: Sequence[int] | None = None) -> TargetBatch:
        """The batch of a step: different tasks, all equally likely; or the part of it at some places."""
        random = np.random.default_rng([self.seed, step])
        chosen = np.sort(random.choice(len(self.rows), self.count, replace=False))
        picked, places = [], list(range(self.count) if slots is None else slots)
        for slot in places:
            own = self.conditions[chosen[slot]]
            number = slot_generator(self.seed, step, slot).integers(len(jax.tree.leaves(own)[0]))
            picked.append(take(own, int(number)))
        return TargetBatch(stack_conditions(picked), self.library[self.rows[chosen[places]]])


def checked_library(recipe: ReconstructionRecipe) -> Library:
    """The recipe's library, packed. Raises UserError if its base, or what training begins from, does not fit."""
    if recipe.init_from is not None and read_config(model_folder(recipe.init_from)).hypernet.offset != "none":
        raise UserError(
            f"init_from: {recipe.init_from} adds an offset to every output, and adapters are reconstructed whole: "
            "begin from a model without an offset, or leave it out"
        )
    library = open_library(
        Path(recipe.library),
        cache_folder() / "libraries",
        alpha=recipe.alpha,
        rslora=recipe.rslora,
        canonical=recipe.objective.canonical,
    )
    if library.base not in (None, recipe.base_name):
        raise UserError(
            f"{recipe.library}: its adapters are for {library.base}, base_name is {recipe.base_name}: name their base "
            "model with --base and --base-name"
        )
    return library


def prepare_reconstruction(recipe: ReconstructionRecipe, kind: type[Trainee], encoder: Encoder | None) -> Prepared:
    """Check and pack the library, and embed the descriptions of its tasks. The base LLM is not read."""
    objective, loop, library = recipe.objective, recipe.loop, checked_library(recipe)
    if recipe.held_out and not kind.takes_new_tasks:
        raise UserError(f"held_out: {recipe.trainee} writes adapters for its own tasks only: make it 0")
    wordings = read_wordings(library, recipe.tasks, recipe.wordings) if kind.reads_text else None
    train, others = split(len(library), recipe.held_out)
    names = [entry.name for entry in library.entries]

    def conditions(rows: np.ndarray, places: Sequence[int], unseen: bool) -> list[Condition]:
        texts: list[tuple[str, ...]] = [()] * len(rows)
        if wordings is not None:
            texts = [(wordings[row].unseen,) if unseen else wordings[row].train for row in rows]
        return conditions_of(kind, encoder, texts, places, cache_folder())

    count = min(recipe.batch_tasks, len(train))
    if count % recipe.accumulate:
        raise UserError(f"accumulate: {count} tasks cannot be cut into {recipe.accumulate} equal parts: use a divisor")
    sampler = TargetSampler(library, train, conditions(train, range(len(train)), False), count, loop.seed)
    validation: dict[str, list[TargetBatch]] = {}
    for name, rows in (({HELD_OUT: others} if len(others) else {}) | {SEEN: train}).items():
        some, size = validated(rows, count // recipe.accumulate)
        places = [int(np.searchsorted(train, row)) if name == SEEN else -1 for row in some]
        firsts = [take(own, 0) for own in conditions(some, places, True)]
        validation[name] = [
            TargetBatch(stack_conditions(firsts[start : start + size]), library[some[start : start + size]])
            for start in range(0, len(some), size)
        ]
    recipe.best.metric(tuple(validation), Reconstruction)
    standardised = recipe.hypernet.standardised and recipe.init_from is None
    mesh = recipe.mesh.make(count // recipe.accumulate)
    statistics = library.statistics(train) if objective.scores or standardised else None
    std = statistics[1] if statistics is not None and objective.scores else None
    texts = json.dumps([] if wordings is None else [[own.train, own.unseen] for own in wordings])
    return Prepared(
        spec=library.spec,
        tasks=tuple(names[row] for row in train),
        batches=Batches(partial(sampler.draw, slots=local_slots(mesh, count)), validation),
        mesh=mesh,
        accumulate=recipe.accumulate,
        objective=lambda: Reconstruction(std, objective),
        prompt=recipe.prompt,
        descriptions=() if wordings is None else tuple(wordings[row].train[0] for row in train),
        training=f"""Trained with t2l_jax to reconstruct {len(train)} LoRA adapters (loss {objective.loss}), at most \
{loop.last} steps of
{count} adapters.""",
        read={"library": library.digest, "descriptions": hashlib.sha256(texts.encode()).hexdigest()},
        chat_template=None if recipe.init_from is None else kind.chat_template(recipe.init_from),
        statistics=statistics,
    )


def validated(rows: np.ndarray, together: int) -> tuple[np.ndarray, int]:
    """The tasks of a validation set, evenly spaced, and how many make a batch: as many as in training, if there are."""
    size = min(together, len(rows), VALIDATION_TASKS)
    return np.asarray(evenly(list(rows), min(len(rows), VALIDATION_TASKS) // size * size)), size


def split(count: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training tasks and of `held_out` evenly spaced others. Raises UserError if fewer than two train."""
    if count - held_out < 2:
        raise UserError(f"held_out: of {count} adapters {held_out} are held out, and at least two must be trained on")
    others = np.asarray(evenly(range(count), held_out), int)
    return np.setdiff1d(np.arange(count), others), others


def read_wordings(library: Library, sources: Sequence[str], most: int | None) -> list[Wordings]:
    """The descriptions of each adapter's task: those of the task source that has it, or its folder's own.

    Raises UserError that names the tasks without any.
    """
    known = {task.name: task for source in sources for tasks in read_tasks(source).values() for task in tasks}
    wordings, missing = [], []
    for entry in library.entries:
        if task := known.get(entry.name):
            wordings.append(Wordings(task.descriptions[:most], task.held_out_wording()))
        elif entry.descriptions:
            *others, last = entry.descriptions  # the last is for validation, unless it is the only one
            wordings.append(Wordings(tuple(others or [last])[:most], last))
        else:
            missing.append(entry.name)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(library)} tasks of the library, such as {missing[0]}, have no description: "
            "name the task source that holds them with --tasks, or write a description.txt into the adapter's folder"
        )
    return wordings
