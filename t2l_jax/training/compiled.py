"""The training step of a recipe, compiled for devices that need not be here, and the compiler's own figures.

Nothing is computed and no weights are read: the step's arguments are shapes with their places on the mesh.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding

from t2l_jax.data.batch import Batch
from t2l_jax.decoder import DecoderConfig
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import stored_parameters
from t2l_jax.io.files import atomic_write, cache_folder, read_json
from t2l_jax.lora import PROJECTIONS
from t2l_jax.schema import checked
from t2l_jax.sharding import batch_sharding, param_sharding, path_of, trained_sharding
from t2l_jax.training.dry_run import make_trainee, width_of_z
from t2l_jax.training.objectives import Sft
from t2l_jax.training.optimizer import make_optimizer
from t2l_jax.training.program import KINDS, Program
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.sft import base_mesh
from t2l_jax.training.step import TrainState, make_step
from t2l_jax.training.topology import Topology
from t2l_jax.training.trainees import TRAINEES, Trainee

VERSION = 1  # of what is kept of a compilation


@dataclass(frozen=True)
class Step:
    """A training step before it is compiled: the function, and the shapes of its arguments on the mesh."""

    recipe: Recipe
    base: DecoderConfig
    mesh: Mesh
    topology: Topology
    function: Any
    arguments: tuple[TrainState, Any, Sft, Batch]

    @property
    def tokens(self) -> int:
        return math.prod(self.arguments[3].tokens.shape)

    def held(self) -> dict[str, int]:
        """Bytes of the arguments on one device, by what they are."""
        state, constants, objective, batch = self.arguments
        return {
            "base LLM": _held(objective),
            "trained weights": _held((state.params, constants)),
            "optimiser": _held(state.opt_state),
            "batch": _held(batch),
        }


@dataclass(frozen=True)
class Figures:
    """What the compiler says of a step, on one device."""

    arguments: int  # bytes
    outputs: int
    aliased: int  # of the outputs, in the place of arguments
    temporaries: int
    flops: float  # with the bodies of loops once
    cycles: dict[str, int]  # its estimate by part of the step; empty if it makes none
    received: dict[str, int]  # bytes from other devices by kind of operation
    operations: dict[str, int]  # how many such operations a step does

    @property
    def memory(self) -> int:
        """Bytes that the step needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclass(frozen=True)
class Refused:
    """The compiler's reason why a step does not fit in the memory of a device."""

    reason: str


def make_plan_step(recipe: Recipe, base: DecoderConfig, topology: Topology) -> Step:
    """The step of a recipe for this base LLM on these devices.

    Raises UserError if the mesh does not divide the tasks or the base LLM, or if this does not fit.
    """
    compute = recipe.compute
    devices, together = topology.devices, compute.together(recipe.batch.tasks)
    mesh = base_mesh(recipe, base, together, devices, topology.chip.memory)
    dtype = compute.base_dtype(devices[0].platform)
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _at(leaf, param_sharding(mesh, path_of(path))),
        unflatten_dict(stored_parameters(base, dtype, compute.base), sep="/"),
    )
    objective = Sft(weights, recipe.decoder(base, mesh), recipe.objective, mesh)
    trainee = make_trainee(recipe, TRAINEES[recipe.trainee], base)
    optimizer = make_optimizer(recipe.optimizer, recipe.loop.steps, recipe.loop.last)
    variables = jax.eval_shape(trainee.init, jax.random.key(0))
    params = variables["params"]
    start: Any = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(start, params, jax.eval_shape(optimizer.init, params))
    constants = {name: value for name, value in variables.items() if name != "params"}
    state, constants = (_placed(tree, trained_sharding(mesh, tree)) for tree in (state, constants))
    batch = _batch(recipe, trainee)
    batch = jax.tree.map(lambda leaf: _at(leaf, batch_sharding(mesh)), batch)
    function = make_step(trainee, optimizer, recipe.loop.seed, compute.accumulate, mesh)
    return Step(recipe, base, mesh, topology, function, (state, constants, objective, batch))


def _batch(recipe: Recipe, trainee: Trainee) -> Batch:
    """The shapes of a batch."""
    shape = recipe.batch
    tasks, rows = shape.tasks, shape.rows
    if trainee.reads_instances:  # each row is a "task" of its own
        tasks, rows = tasks * rows, 1
    reads = trainee.reads_text or trainee.reads_instances
    z: Any = jax.ShapeDtypeStruct((tasks, width_of_z(recipe.encoder)), jnp.float32) if reads else None
    ids: Any = jax.ShapeDtypeStruct((tasks,), jnp.int32)
    condition = Condition(z if trainee.reads_text else None, ids, z if trainee.reads_instances else None)
    integers: Any = jax.ShapeDtypeStruct((tasks, rows, shape.length), jnp.int32)
    weights: Any = jax.ShapeDtypeStruct(integers.shape, jnp.float32)
    return Batch(condition, integers, integers, integers, integers, weights)


def _at(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(_at, tree, shardings)


def _held(tree: Any) -> int:
    """Bytes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compile_step(step: Step) -> Figures | Refused:
    """The compiler's figures; those of an equal step, compiled before by the same versions, come from the cache."""
    lowered = step.function.lower(*step.arguments)
    path = cache_folder() / "plans" / f"{_identity(lowered.as_text(), step.topology)}.json"
    if path.exists():
        return _read(path)
    try:
        figures: Figures | Refused = _figures(lowered.compile(), step.mesh.size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figures = Refused(" ".join(str(error).split())[:300])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(asdict(figures)) + "\n")
    return figures


def _read(path: Path) -> Figures | Refused:
    found = read_json(path)
    return checked(Refused, found, str(path)) if "reason" in found else checked(Figures, found, str(path))


def _identity(program: str, topology: Topology) -> str:
    versions = [jax.__version__, metadata.version("jaxlib")]
    if topology.devices[0].platform == "tpu":
        versions.append(metadata.version("libtpu"))
    parts = [str(VERSION), topology.name, *versions, program]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def _figures(compiled: Any, devices: int) -> Figures:
    memory, program = compiled.memory_analysis(), Program.parse(compiled.as_text(), devices)
    sent = program.collectives()
    cycles: Counter[str] = Counter()
    for scope, count in program.cycles():
        cycles[_part(scope)] += count
    return Figures(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        float(compiled.cost_analysis()["flops"]),
        dict(cycles.most_common()),
        {kind: sum(own.size * own.times for own in sent if own.kind == kind) for kind in KINDS},
        {kind: sum(own.times for own in sent if own.kind == kind) for kind in KINDS},
    )


def _part(scope: str) -> str:
    """The part of a step that an operation belongs to, by its scope. A fused one is named by one of its own."""
    if "random" in scope or "bernoulli" in scope:
        return "dropout and noise"
    projection = any(f"/{name}/" in scope for name in PROJECTIONS)
    if projection:
        return "LoRA" if "vmap" in scope else "projections"
    named = {
        "layers.attention": "attention",
        "layers.mlp": "activations of the MLP",
        "Hypernet": "hypernetwork",
        "shard_map": "answers' loss, of one chunk",
        "dynamic_slice": "slices of stacked weights",
        "dynamic_update_slice": "what is kept",
        "Decoder": "rest of the layers",
    }
    return next((part for word, part in named.items() if word in scope), "optimiser and rest")
