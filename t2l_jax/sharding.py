"""The device mesh, and where each logical axis lies on it.

The mesh has three axes:

    data    divides tasks
    fsdp    divides tasks too, and the widths of the base LLM's stored weights: its devices gather a layer just before
            they compute it, so that none holds the whole base LLM
    tensor  divides heads, MLP and vocabulary: its devices compute each layer of the same tasks together, and add up
            what they return; also the heads of a large hypernetwork

Everything else follows from the logical axes that each array declares; XLA inserts the communication.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS, Adapter
from t2l_jax.schema import Width, check_fields

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...]] = {
    "task": ("data", "fsdp"),
    "heads": ("tensor",),  # query heads
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "head_in": ("tensor",),  # what a large head of the hypernetwork reads
    "width": ("fsdp",),  # of stored weights; that of activations is never divided
    "layer": (),
}

# Axes of the parameters with a vocabulary axis. Those of the layers' kernels are in `lora.PROJECTIONS`.
TABLES = {"embedding": ("vocab", "width"), "head": ("vocab", "width")}
MATRICES = ("kernel", "values", "codes", "scales")  # a kernel, or what stands for one in `decoder.quantized`
LARGE = 2**24  # numbers in a kernel of the hypernetwork's heads from which `tensor` divides it
SHARE = 4  # the base LLM may take one part in so many of a device's memory before fsdp divides it further


@dataclass(frozen=True)
class MeshConfig:
    """How devices share a step. Tasks are divided among those that fsdp and tensor leave, and among fsdp's."""

    fsdp: Width | None = None
    """Devices that share the base LLM's stored weights; each computes tasks of its own and gathers one layer at a time.
    Default: in training as few as leave three quarters of a device's memory free, else 1."""
    tensor: Width = 1
    """Devices that compute each layer together, a part of the heads, MLP and vocabulary each. More communication than
    fsdp, for when there are more devices than tasks."""

    def __post_init__(self) -> None:
        check_fields(self, "mesh")

    def make(
        self,
        num_tasks: int,
        base_bytes: int = 0,
        devices: Sequence[jax.Device] | None = None,
        memory: int | None = None,
    ) -> Mesh:
        """The mesh for steps of `num_tasks` tasks on these devices (default: all), with `memory` bytes each.

        It takes the most devices that divide the tasks; with several processes it must take all. Raises UserError if
        that cannot be, or if a base LLM of `base_bytes` does not fit.
        """
        devices = jax.devices() if devices is None else devices
        memory = device_memory(devices[0]) if memory is None else memory
        fsdp = self.fsdp or 1
        if len(devices) % (fsdp * self.tensor):
            raise UserError(
                f"mesh: {len(devices)} devices cannot be split into groups of fsdp x tensor = {fsdp} x {self.tensor}: "
                f"make the product a divisor of {len(devices)}"
            )
        largest = len(devices) // self.tensor
        fitting = [count for count in range(fsdp, largest + 1, fsdp) if num_tasks % count == 0]
        if not fitting or (fitting[-1] < largest and jax.process_count() > 1):
            raise UserError(
                f"mesh: {num_tasks} tasks cannot be divided among {largest if fitting else fsdp} devices (tensor "
                f"{self.tensor}, fsdp {fsdp}): change the number of tasks in a step, or make tensor larger"
            )
        replicas = fitting[-1]
        if self.fsdp is None:
            fsdp = _enough(replicas, base_bytes // self.tensor, memory)
        _check_memory(base_bytes, fsdp * self.tensor, memory, len(devices))
        return make_mesh(fsdp, self.tensor, replicas // fsdp, devices)

    def of_weights(self) -> Mesh | None:
        """The mesh of a base LLM that answers: devices of this process, which all compute the same rows.

        None for a single device. Raises UserError if there are not enough.
        """
        count = (self.fsdp or 1) * self.tensor
        return make_mesh(self.fsdp or 1, self.tensor, data=1, devices=jax.local_devices()) if count > 1 else None


def _enough(replicas: int, size: int, memory: int | None) -> int:
    """The least divisor of `replicas` that leaves each device with its share of `size` bytes; at most all."""
    divisors = [count for count in range(1, replicas + 1) if replicas % count == 0]
    return next((count for count in divisors if memory is None or size * SHARE <= count * memory), replicas)


def _check_memory(base_bytes: int, parts: int, memory: int | None, count: int) -> None:
    if memory is not None and base_bytes >= parts * memory:
        raise UserError(
            f"mesh: the base LLM takes {base_bytes / 1e9:.1f} GB, {base_bytes / parts / 1e9:.1f} GB on each of {parts} "
            f"devices that share it, which have {memory / 1e9:.1f} GB: make mesh.fsdp x mesh.tensor at least "
            f"{-(-base_bytes * 2 // memory)} (there are {count} devices)"
        )


def device_memory(device: jax.Device) -> int | None:
    """Bytes of a device's memory; None where it does not say (CPUs). Those of other processes are like this one's."""
    if device.process_index != jax.process_index():
        device = jax.local_devices()[0]
    stats = device.memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def make_mesh(
    fsdp: int = 1, tensor: int = 1, data: int | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data` x `fsdp` x `tensor` devices; by default `data` is what the others leave.

    Raises UserError if there are not enough devices, or if they are not divided evenly by default.
    """
    devices = jax.devices() if devices is None else devices
    count, group = len(devices), fsdp * tensor
    if data is None:
        if group < 1 or count % group:
            raise UserError(f"{count} devices cannot be split into groups of {group}: choose a divisor of {count}")
        data = count // group
    if data < 1 or group < 1 or data * group > count:
        raise UserError(f"a mesh of {data} x {fsdp} x {tensor} devices cannot be made of {count}: choose fewer")
    used = list(devices)[: data * group]
    grid = mesh_utils.create_device_mesh((data, fsdp, tensor), used, allow_split_physical_axes=True)
    return Mesh(grid, AXES, (AxisType.Auto,) * 3)


def shown(mesh: Mesh) -> str:
    """A mesh in words."""
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def partition(*axes: str | None) -> PartitionSpec:
    """The mesh axes of an array with these logical axes (None: not divided).

    Raises ValueError if two of them fall on one mesh axis, since an array cannot be divided twice by it.
    """
    spread = [RULES[axis] if axis else () for axis in axes]
    used = [name for names in spread for name in names]
    if len(set(used)) < len(used):
        raise ValueError(f"logical axes {axes} fall on one mesh axis twice: {used}")
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in spread))


def constrain(mesh: Mesh | None, x: jax.Array, *axes: str | EllipsisType | None) -> jax.Array:
    """x, divided as its logical axes say, where ... stands for axes that are not divided. Without a mesh x itself.

    An axis that its devices do not divide, such as the few tasks of a validation batch, stays whole.
    """
    if mesh is None or mesh.size == 1:
        return x
    split = axes.index(...) if ... in axes else len(axes)
    named = (*axes[:split], *(None,) * (x.ndim - len(axes) + (... in axes)), *axes[split + 1 :])
    whole = [
        axis if isinstance(axis, str) and size % parts(mesh, axis) == 0 else None
        for axis, size in zip(named, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(*whole)))


def constrain_adapter(mesh: Mesh | None, adapter: Adapter) -> Adapter:
    """Adapters [T] divided by task, and by the axes of the kernels that they adapt."""
    weights = {}
    for name, own in adapter.weights.items():
        inputs, outputs = kernel_axes(name)
        a, b = constrain(mesh, own["a"], "task", ..., inputs), constrain(mesh, own["b"], "task", ..., outputs, None)
        weights[name] = {"a": a, "b": b}
    return replace(adapter, weights=weights)


def kernel_axes(projection: str) -> tuple[str | None, str | None]:
    """The logical axes of what a projection reads and returns, and of its kernel once it is gathered."""
    inputs, outputs = (None if axis == "width" else axis for axis in PROJECTIONS[projection].axes)
    return inputs, outputs


def parts(mesh: Mesh, axis: str) -> int:
    """The number of parts into which the mesh divides a logical axis."""
    count = 1
    for name in RULES[axis]:
        count *= mesh.shape[name]
    return count


def check_divides(mesh: Mesh, sizes: dict[str, int]) -> None:
    """Raise UserError if the mesh does not divide a logical axis of a base LLM, given their sizes."""
    for axis, size in sizes.items():
        if size % parts(mesh, axis):
            (name,) = RULES[axis]
            what = axis.replace("_", " ")
            raise UserError(
                f"mesh.{name}: {mesh.shape[name]} devices do not divide the base LLM's {what}, {size}: choose a divisor"
            )


def param_axes(path: str) -> tuple[str, ...]:
    """The logical axes of a decoder parameter, by its path; () for norms, which every device holds."""
    names = path.split("/")
    projection = next((PROJECTIONS[name] for name in names if name in PROJECTIONS), None)
    if projection is None:
        return TABLES.get(path, ())
    outputs = projection.axes[1]
    if names[-1] in MATRICES:
        return "layer", *projection.axes
    return ("layer", outputs) if names[-1] == "scale" or outputs != "width" else ()


def param_sharding(mesh: Mesh, path: str) -> NamedSharding:
    """The sharding of a decoder parameter, by its path. Pass `partial(param_sharding, mesh)` to `load_base`."""
    return NamedSharding(mesh, partition(*param_axes(path)))


def path_of(path: tuple[Any, ...]) -> str:
    """The path of a leaf as `param_axes` reads it, from that of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place_base(mesh: Mesh, params: dict[str, Any]) -> dict[str, Any]:
    """Place a decoder's parameters according to `param_sharding`; those already in place are not copied."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: put(leaf, param_sharding(mesh, path_of(path))), params)


def trained_sharding(mesh: Mesh, tree: Any) -> Any:
    """The shardings of what is trained, or of a state that holds it: whole on every device but for large heads."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        head = len(names) > 1 and names[-2].startswith("head_") and names[-1] == "kernel" and leaf.size >= LARGE
        return NamedSharding(mesh, partition(*(("head_in", None) if head else ())))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of arrays whose first axis, after `leading` others, is the task: tokens, conditions, adapters."""
    return NamedSharding(mesh, partition(*(None,) * leading, "task"))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Shard a batch by task; replicate it if the devices do not divide its tasks (possible in validation)."""
    num_tasks = jax.tree.leaves(batch)[0].shape[0]
    fits = num_tasks % parts(mesh, "task") == 0
    return put(batch, batch_sharding(mesh) if fits else replicated(mesh))


def local_slots(mesh: Mesh, num_tasks: int) -> list[int]:
    """The places, in a batch of so many tasks, of those that this process's devices hold."""
    held = batch_sharding(mesh).addressable_devices_indices_map((num_tasks,)).values()
    return sorted({slot for index in held if index for slot in range(*index[0].indices(num_tasks))})


def place_part(mesh: Mesh, part: Any) -> Any:
    """Shard a batch by task, given the part of it at this process's `local_slots`."""
    own = local_slots(mesh, parts(mesh, "task"))  # one slot for each part that a device holds
    if len(own) == parts(mesh, "task"):
        return jax.device_put(part, batch_sharding(mesh))

    def place(leaf: Any) -> jax.Array:
        size = len(leaf) // len(own)

        def block(index: Any) -> Any:
            at = own.index((index[0].start or 0) // size) * size
            return leaf[at : at + size]

        shape = (size * parts(mesh, "task"), *leaf.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh), block)

    return jax.tree.map(place, part)


def put(tree: Any, sharding: Any) -> Any:
    """Place arrays that every process has in full, each process its own part of them; `sharding`: one, or a tree."""
    if all(one.is_fully_addressable for one in jax.tree.leaves(sharding)):
        return jax.device_put(tree, sharding)

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # it is spread over the processes already
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, sharding), tree)
    return jax.tree.map(place, tree, sharding)


def fetch(tree: Any) -> Any:
    """Arrays of this process alone, each whole on its first device. With one process, the arrays as they are."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return tree
    mesh = next(leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if not leaf.is_fully_addressable)
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.device_put(jax.device_get(whole), jax.local_devices()[0])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())
