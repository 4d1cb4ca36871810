"""What the processes of tests/training/test_hosts.py do: `python hosts.py FUNCTION FOLDER` in each of them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tiny_training
from jax.sharding import Mesh
from tiny_recipe import make_recipe, recipe_in, write_task

from t2l_jax import distributed
from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import BatchConfig
from t2l_jax.errors import Stopped, UserError
from t2l_jax.sharding import MeshConfig, local_slots, make_mesh, place_part
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.run import run
from t2l_jax.training.trackers import JsonLines

say = partial(print, file=sys.stderr, flush=True)  # Gloo writes halves of lines to stdout
SHAPE = BatchConfig(tasks=8, rows=1, length=12)
# Rounding in a gradient changes the losses of 8 such steps by less than 1e-6; at ten times this rate, by up to 1e-3.
SLOW = replace(tiny_training.FAST, learning_rate=0.002)
LONG = replace(tiny_training.LOOP, steps=1000, validate_every=1000, checkpoint_every=1000)


def train(folder: Path, mesh: Mesh, before: Callable[[int], None] = lambda n: None, **changes: object) -> list[int]:
    """The tiny run of 8 steps of 8 tasks on a mesh, each process with its part of every batch.

    Returns the places of that part. `before` is called with each step.
    """
    sampler, slots = tiny_training.sampler(SHAPE, repeat=4), local_slots(mesh, SHAPE.tasks)

    def draw(n: int) -> Batch:
        before(n)
        return sampler.draw(n, slots)

    tiny_training.run(folder, draw, mesh=mesh, trackers=(JsonLines,), optimizer=SLOW, **changes)
    return slots


def eight_tasks(recipe: Recipe) -> Recipe:
    """The recipe for 8 devices, pairs of which share the base LLM's weights."""
    return replace(recipe, batch=replace(recipe.batch, tasks=8), mesh=MeshConfig(fsdp=2))


def make_material(folder: Path) -> Recipe:
    """The recipe, with what it reads."""
    recipe = make_recipe(folder)
    for number in range(6):
        write_task(folder / "tasks", f"more{number}", [f"say the last word {'again ' * number}".strip()])
    return eight_tasks(recipe)


def undisturbed(folder: Path) -> None:
    """Refuse another recipe; train without a stop; go on with a run of 8 devices on four; stop by SIGTERM."""
    try:
        run(Recipe(loop=replace(tiny_training.LOOP, seed=jax.process_index())), folder / "refused")
    except UserError as error:
        say("refused:", error)
    slots = train(folder / "whole", make_mesh(fsdp=2))
    say("slots:", slots)
    some = [device for device in jax.devices() if device.id % jax.local_device_count() < 2]
    train(folder / "of_eight", make_mesh(devices=some), validation={})

    def stop(n: int) -> None:
        time.sleep(0.02)
        if n == 5 and not distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(folder / "stopped", make_mesh(fsdp=2), stop, loop=LONG)
    except Stopped as stopped:
        say("stopped:", stopped)
        sys.exit(stopped.status)


def killed(folder: Path) -> None:
    """A whole recipe; then a run in which process 1 dies by SIGKILL after the checkpoint of step 3."""
    say("published:", run(eight_tasks(recipe_in(folder / "material")), folder / "recipe"))

    def kill(n: int) -> None:
        if n == 6 and not distributed.is_main():
            while not (folder / "killed" / "checkpoints" / "3").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder / "killed", make_mesh(fsdp=2), kill)


def resumed(folder: Path) -> None:
    """Place a batch on meshes where two devices hold the same tasks; go on with what was killed."""
    mixed = sorted(jax.devices(), key=lambda device: device.id % jax.local_device_count())  # pairs of both processes
    for devices in (jax.devices(), mixed):
        mesh = make_mesh(tensor=2, devices=devices)
        sampler, slots = tiny_training.sampler(SHAPE, repeat=4), local_slots(mesh, SHAPE.tasks)
        whole, placed = sampler.draw(0), place_part(mesh, sampler.draw(0, slots))
        assert placed.tokens.shape == whole.tokens.shape
        for shard in placed.tokens.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole.tokens[shard.index])
        say(f"tensor{len(slots)}: placed")
    train(folder / "killed", make_mesh(fsdp=2))


if __name__ == "__main__":
    distributed.start(f"localhost:{sys.argv[3]}", limit=120)
    globals()[sys.argv[1]](Path(sys.argv[2]))
