"""A whole training run: a recipe in, a run folder with a published model out."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from t2l_jax.data.tasks import evenly
from t2l_jax.distributed import agree, from_main, is_main, several, together
from t2l_jax.encoder import Encoder, load_encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.descriptions import MOST_TASKS, Descriptions
from t2l_jax.io.encoder_adapter import copy_adapter
from t2l_jax.io.files import atomic_write, locked, read_json, refuse_nonempty
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import digest
from t2l_jax.io.published import ENCODER_FOLDER
from t2l_jax.io.session import code
from t2l_jax.io.shared import check_shared
from t2l_jax.sharding import fetch, shown
from t2l_jax.training.initial import weights_digest, with_statistics
from t2l_jax.training.loop import RunConfig, train
from t2l_jax.training.prepared import Prepared
from t2l_jax.training.recipe import BaseRecipe, Recipe, ReconstructionRecipe
from t2l_jax.training.reconstruction import prepare_reconstruction
from t2l_jax.training.sft import prepare_sft
from t2l_jax.training.trackers import TRACKERS, OpenTracker, WeightsAndBiases, import_wandb
from t2l_jax.training.trainees import TRAINEES, JointHypernetwork, Release, TextHypernetwork, Trainee, join, trainable

PREPARE: dict[type[BaseRecipe], Callable[..., Prepared]] = {
    Recipe: prepare_sft,
    ReconstructionRecipe: prepare_reconstruction,
}
RECIPE_FILE = "recipe.json"


def run(recipe: BaseRecipe, folder: Path, wandb: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Train a recipe in `folder`, or resume an earlier run of it; return the path of the published result.

    The folder gets `recipe.json`, the files of `train` and, at the end, the trained model: `model/`, or `adapters/` for
    LoRAs. `wandb` names a Weights & Biases project. The text encoder's own code runs only with `trust_remote_code`.
    """
    if several():
        agree({**code(), **flatten_dict(asdict(recipe), sep=".")})
    with together():
        if wandb and is_main():
            import_wandb()  # fail early if it is not installed
        kind = TRAINEES[recipe.trainee]
        embeds = kind.reads_text or kind.reads_instances
        encoder = load_encoder(recipe.encoder, trust_remote_code=trust_remote_code) if embeds else None
        learner = trainable(encoder, recipe.encoder) if recipe.trains_encoder else None
        prepared = PREPARE[type(recipe)](recipe, JointHypernetwork if learner else kind, encoder)
        net = recipe.hypernet if recipe.init_from is None else kind.form(recipe.hypernet, recipe.init_from)
        trainee = kind.make(net, prepared.spec, encoder.dim if encoder else None, len(prepared.tasks))
        release = Release(
            recipe.base,
            recipe.base_name,
            encoder,
            prepared.prompt,
            prepared.tasks,
            prepared.training,
            prepared.chat_template,
            Descriptions(trained=tuple(evenly(prepared.descriptions, MOST_TASKS))),
        )
        initial, began = _begin(recipe, trainee, release, prepared)
        if learner:
            assert isinstance(trainee, TextHypernetwork)
            key = jax.random.key(recipe.loop.seed)
            begun, training = initial or trainee.init(key), recipe.encoder_training
            trainee, initial = join(trainee, begun, learner, training, jax.random.fold_in(key, 1))
    read = {**prepared.read, "encoder": encoder and encoder.fingerprint, "init": began}
    agree({f"read.{name}": value for name, value in read.items()})
    with together():
        objective = prepared.objective()
    _announce(prepared.mesh)
    # Only now: a recipe that is refused leaves nothing behind.
    with together():
        if is_main():
            _claim(folder, recipe, read, encoder)
    check_shared(folder)
    trackers: tuple[OpenTracker, ...] = (partial(WeightsAndBiases, wandb), *TRACKERS) if wandb else TRACKERS
    how = RunConfig(recipe.loop, recipe.optimizer, recipe.best, prepared.accumulate, prepared.mesh, trackers)
    variables = fetch(train(trainee, objective, prepared.batches, folder, how, initial))
    written = ""
    with together():
        if is_main():
            written = str(trainee.publish(folder, variables, release))
    return Path(from_main(written))


def _announce(mesh: Mesh) -> None:
    """Say on which devices the run computes."""
    if jax.device_count() > 1 and is_main():
        fewer = mesh.size < jax.device_count()
        devices = (
            f"{mesh.size} of {jax.device_count()} devices: no more divide its tasks"
            if fewer
            else f"{mesh.size} devices"
        )
        hosts = f" of {jax.process_count()} hosts" if several() else ""
        print(f"t2l: training on {devices}{hosts} ({shown(mesh)})", file=sys.stderr)


def _begin(
    recipe: BaseRecipe, trainee: Trainee, release: Release, prepared: Prepared
) -> tuple[Variables | None, str | None]:
    """The initial variables (None for fresh ones), and a hash of their origin."""
    if recipe.init_from is not None:
        weights = trainee.begin_from(recipe.init_from, release, prepared.base)
        return weights, weights_digest(weights, release.chat_template)
    offset_init = recipe.offset_init if isinstance(recipe, Recipe) else None
    if offset_init is not None:
        offset = resolve(offset_init).path
        fresh = trainee.init(jax.random.key(recipe.loop.seed))
        # Not a hash of the fresh weights: their last bits depend on the backend.
        return trainee.begin_as(offset, fresh, prepared.base), digest(offset)
    if prepared.statistics is not None and recipe.hypernet.standardised:  # fresh, or it would have returned above
        return with_statistics(trainee.init(jax.random.key(recipe.loop.seed)), *prepared.statistics), None
    return None, None


def _claim(folder: Path, recipe: BaseRecipe, read: dict[str, Any], encoder: Encoder | None) -> None:
    """Record the recipe and hashes of its inputs in the run folder. Raises UserError if the folder is another run's."""
    mine = json.loads(json.dumps(asdict(recipe)))
    mine["read"] = read
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


def _changed(there: dict[str, Any], here: dict[str, Any], recipe: BaseRecipe) -> str:
    """Text that lists the fields in which two recipes differ, except those that a resumed run may change."""
    free = {"loop.log_every", "loop.checkpoint_every", "mesh.fsdp", "mesh.tensor", "compute.remat"}
    if not recipe.optimizer.cooldown:
        free.add("loop.stop_after")  # a run that ended early may be resumed: its steps are the same
    defaults = json.loads(json.dumps(asdict(type(recipe)())))  # of fields that are younger than the folder
    old, new = ({**flatten_dict(defaults, sep="."), **flatten_dict(there, sep=".")}, flatten_dict(here, sep="."))
    fields = sorted(key for key in (old.keys() | new.keys()) - free if old.get(key) != new.get(key))
    return ", ".join(
        f"{key} differs" if key.startswith("read.") else f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in fields
    )
