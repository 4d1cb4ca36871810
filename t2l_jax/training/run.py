"""A whole training run: a recipe in, a run folder with a published model out."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from t2l_jax.data.tasks import Task
from t2l_jax.decoder.padding import check_tokens
from t2l_jax.encoder import Encoder, load_encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.base import check_separate, load_config, load_tokenizer
from t2l_jax.io.encoder_adapter import copy_adapter
from t2l_jax.io.files import atomic_write, locked, read_json, refuse_nonempty
from t2l_jax.io.locations import ModelFiles, resolve
from t2l_jax.io.peft import digest
from t2l_jax.io.published import ENCODER_FOLDER
from t2l_jax.training.initial import weights_digest
from t2l_jax.training.loop import Batches, RunConfig, train
from t2l_jax.training.material import Material, check_best, read_material
from t2l_jax.training.objectives import FrozenBase
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.trackers import TRACKERS, OpenTracker, WeightsAndBiases, import_wandb
from t2l_jax.training.trainees import TRAINEES, Release, Trainee

RECIPE_FILE = "recipe.json"


def run(recipe: Recipe, folder: Path, wandb: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Train a recipe in `folder`, or resume an earlier run of it; return the path of the published result.

    The folder gets `recipe.json`, the files of `train` and, at the end, the trained model: `model/`, or `adapters/` for
    LoRAs. `wandb` names a Weights & Biases project. The text encoder's own code runs only with `trust_remote_code`.
    """
    if wandb:
        import_wandb()  # fail early if it is not installed
    kind = TRAINEES[recipe.trainee]
    mesh = recipe.compute.mesh(recipe.batch.tasks)
    files = resolve(recipe.base)
    encoder = load_encoder(recipe.encoder, trust_remote_code=trust_remote_code) if kind.reads_text else None
    template = None if recipe.init_from is None else kind.chat_template(recipe.init_from)
    material = read_material(recipe, kind, load_tokenizer(files, template), encoder)
    check_best(recipe.best, recipe.objective.kind, material.validation)
    config = load_config(files)
    base = FrozenBase(files, config, recipe.compute.decoder, recipe.compute.base_dtype(), mesh)
    spec = config.lora_spec(**asdict(recipe.lora))
    check_separate(files, spec.names)
    for task in material.sampler.tasks:
        for table in task.examples.values():
            check_tokens(table.tokens, config.vocab_size)
    trainee = kind.make(recipe.hypernet, spec, encoder.dim if encoder else None, len(material.tasks))
    release = _release(recipe, material, encoder, template)
    initial, began = _begin(recipe, trainee, release, base)
    objective = recipe.objective.build(base)
    if mesh.size < jax.device_count():
        print(
            f"t2l: training on {mesh.size} of {jax.device_count()} devices: no more divide its tasks", file=sys.stderr
        )
    # Only now: a recipe that is refused leaves nothing behind.
    _claim(folder, recipe, material, encoder, files, began)
    trackers: tuple[OpenTracker, ...] = (partial(WeightsAndBiases, wandb), *TRACKERS) if wandb else TRACKERS
    how = RunConfig(recipe.loop, recipe.optimizer, recipe.best, recipe.compute.accumulate, mesh, trackers)
    variables = train(trainee, objective, Batches(material.sampler.draw, material.validation), folder, how, initial)
    return trainee.publish(folder, variables, release)


def _begin(recipe: Recipe, trainee: Trainee, release: Release, base: FrozenBase) -> tuple[Variables | None, str | None]:
    """The initial variables (None for fresh ones), and a hash of their origin."""
    if recipe.init_from is not None:
        weights = trainee.begin_from(recipe.init_from, release, base.config)
        return weights, weights_digest(weights, release.chat_template)
    if recipe.offset_init is not None:
        offset = resolve(recipe.offset_init).path
        fresh = trainee.init(jax.random.key(recipe.loop.seed))
        # Not a hash of the fresh weights: their last bits depend on the backend.
        return trainee.begin_as(offset, fresh, base.config), digest(offset)
    return None, None


def _release(recipe: Recipe, material: Material, encoder: Encoder | None, template: str | None) -> Release:
    """The metadata to publish with the weights."""
    prompt = material.modes[0] if len(material.modes) == 1 else "both"
    tasks = tuple(task.name for task in material.tasks)
    sources, shape = ", ".join(recipe.tasks), recipe.batch
    training = f"""Trained with t2l_jax on {len(tasks)} tasks ({sources}), at most {recipe.loop.last} steps of
{shape.tasks} tasks x {shape.rows} rows of {shape.length} tokens."""
    return Release(recipe.base, recipe.base_name, encoder, prompt, tasks, training, template)


def _digest(tasks: Sequence[Task]) -> str:
    """A hash of the training data, by which a resumed run checks that it is unchanged."""
    digest = hashlib.sha256()
    for task in tasks:
        content = [task.name, task.descriptions, [(example.input, example.output) for example in task.train]]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _claim(
    folder: Path, recipe: Recipe, material: Material, encoder: Encoder | None, base: ModelFiles, began: str | None
) -> None:
    """Record the recipe and hashes of its inputs in the run folder. Raises UserError if the folder is another run's."""
    mine = json.loads(json.dumps(asdict(recipe)))
    mine["read"] = {
        "tasks": _digest(material.tasks),
        "base": base.identity,
        "encoder": encoder and encoder.fingerprint,
        "init": began,
    }
    path, own = folder / RECIPE_FILE, folder / ENCODER_FOLDER
    with locked(folder):
        if path.exists():
            changed = _changed(read_json(path), mine, recipe)
            if changed:
                raise UserError(f"{path}: this folder holds a run of another recipe ({changed}); give another --out")
        else:
            refuse_nonempty(folder, "run")
        atomic_write(path, json.dumps(mine, indent=2) + "\n")  # a resumed run may change some fields: see `_changed`
        if encoder is not None and encoder.adapter is not None and not own.exists():
            copy_adapter(encoder.adapter, own)


def _changed(there: dict[str, Any], here: dict[str, Any], recipe: Recipe) -> str:
    """Text that lists the fields in which two recipes differ, except those that a resumed run may change."""
    free = {"loop.log_every", "loop.checkpoint_every"}
    if not recipe.optimizer.cooldown:
        free.add("loop.stop_after")  # a run that ended early may be resumed: its steps are the same
    old, new = (flatten_dict(values, sep=".") for values in (there, here))
    fields = sorted(key for key in (old.keys() | new.keys()) - free if old.get(key) != new.get(key))
    return ", ".join(
        f"{key} differs" if key.startswith("read.") else f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in fields
    )
