"""The device mesh, and the mesh axis of each logical axis.

The mesh has two axes: tasks are sharded over `data`, the base model's widths over `model`. Everything else follows from
the logical axes that each parameter declares; XLA inserts the communication.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS

RULES: dict[str, str | None] = {
    "task": "data",
    "heads": "model",  # query heads
    "kv_heads": "model",
    "mlp": "model",
    "vocab": "model",
    "layer": None,
    "width": None,
}

# Axes of the parameters with a vocabulary axis. Those of the layers' kernels are in `lora.PROJECTIONS`.
TABLES = {"embedding": ("vocab", "width"), "head": ("vocab", "width")}


def make_mesh(model: int = 1, data: int | None = None) -> Mesh:
    """A mesh of `data` x `model` devices; by default `data` is the number of devices divided by `model`.

    Raises UserError if there are not enough devices, or if `model` does not divide them by default.
    """
    count = jax.device_count()
    if data is None:
        if model < 1 or count % model:
            raise UserError(f"{count} devices cannot be split into groups of {model}: choose a divisor of {count}")
        data = count // model
    if data < 1 or model < 1 or data * model > count:
        raise UserError(f"a mesh of {data} x {model} devices cannot be made of {count}: choose fewer")
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto, AxisType.Auto), devices=devices)


def param_sharding(mesh: Mesh, path: str) -> NamedSharding:
    """The sharding of a decoder parameter, by its path. Pass `partial(param_sharding, mesh)` to `load_base`.

    Norms, and parameters in no table, are replicated.
    """
    *parents, leaf = path.split("/")
    axes: tuple[str, ...] = TABLES.get(path, ())
    if leaf in ("kernel", "bias") and parents[-1] in PROJECTIONS:
        kernel = PROJECTIONS[parents[-1]].axes
        axes = ("layer", *(kernel if leaf == "kernel" else kernel[1:]))  # a bias has the output axis alone
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in axes)))


def place_base(mesh: Mesh, params: dict[str, Any]) -> dict[str, Any]:
    """Place a decoder's parameters according to `param_sharding`; those already in place are not copied."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, param_sharding(mesh, "/".join(key.key for key in path))), params
    )


def task_mesh(num_tasks: int) -> Mesh:
    """The mesh of data-parallel training: the largest number of devices that divides `num_tasks`."""
    count = jax.device_count()
    return make_mesh(data=max(size for size in range(1, count + 1) if num_tasks % size == 0))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of arrays whose first axis, after `leading` others, is the task: tokens, conditions, adapters."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, RULES["task"]))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Shard a batch by task; replicate it if the devices do not divide its tasks (possible in validation)."""
    num_tasks = jax.tree.leaves(batch)[0].shape[0]
    fits = num_tasks % mesh.shape["data"] == 0
    return jax.device_put(batch, batch_sharding(mesh) if fits else replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
