"""Parameters of a base model while their files are read: each device's part is filled block by block.

A process reads only the rows and columns that its devices hold, of int8 whole rows, whose largest number gives their
scale. Whatever the number of devices, host memory holds one block beside the parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from t2l_jax.decoder.padding import power_of_two_within
from t2l_jax.decoder.quantized import BLOCK, BaseKind, Int8Kernel, Nf4Kernel, Stored, quantise
from t2l_jax.errors import UserError
from t2l_jax.io.tensor import Tensor
from t2l_jax.sharding import path_of

Placement = Callable[[str], Sharding | None]  # path of a parameter, such as "layers/q_proj/kernel"

BLOCK_BYTES = 2**24  # read at a time: the only host memory that loading needs besides the parameters
OWN = PartitionSpec("device")  # of an array that holds something for each device of this process, one after the other


@dataclass(frozen=True)
class Slot:
    """Destination of a checkpoint's tensor, or of some of its rows: parameter path, layer, whether it is transposed.

    `first` is the first of the rows, as many as `shape` says.
    """

    path: str
    layer: int | None
    transposed: bool
    shape: tuple[int, ...]  # in the checkpoint
    first: int = 0


class Filling:
    """A parameter that is being read: an array, or a kernel in 8 or 4 bits.

    The parts of all devices of this process are one buffer, one after the other along the first axis, so that one
    compiled program writes a block to each of them.
    """

    def __init__(self, path: str, stored: Stored, shape: tuple[int, ...], place: Placement) -> None:
        """`stored`: what the parameter of this path and shape is kept as (`quantized.stored`)."""
        self.kind: BaseKind = "native"
        if isinstance(stored, Int8Kernel | Nf4Kernel):
            self.kind = "int8" if isinstance(stored, Int8Kernel) else "nf4"
        self.mesh: Mesh | None = None  # of this process's devices; None: the one that JAX takes by default
        self.parts: list[tuple[slice, ...]] = [(slice(None),) * len(shape)]
        if (sharding := place(path)) is not None:
            held = sharding.addressable_devices_indices_map(shape)
            self.parts = [index or () for index in held.values()]
            self.mesh = Mesh(np.array(list(held)), tuple(OWN))

        def placed(own: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            name = "/".join(filter(None, (path, path_of(own))))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(name))

        def empty(leaf: jax.ShapeDtypeStruct) -> Array:
            dtype = _kept_as(leaf.dtype, self.mesh)
            if self.mesh is None:
                return jnp.zeros(leaf.shape, dtype)
            first, *rest = leaf.sharding.shard_shape(leaf.shape)
            return jnp.zeros((len(self.parts) * first, *rest), dtype, device=NamedSharding(self.mesh, OWN))

        self.leaves = jax.tree_util.tree_map_with_path(placed, stored)
        self.buffers = jax.tree.map(empty, self.leaves)

    def joined(self) -> Any:
        """The parameter, on the devices of all processes. Nothing is copied."""

        def join(buffer: Array, leaf: jax.ShapeDtypeStruct) -> Array:
            own = [_seen_as(leaf.dtype, shard.data) for shard in buffer.addressable_shards]
            if self.mesh is None:
                return own[0]
            return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, own)

        return jax.tree.map(join, self.buffers, self.leaves)

    def fill(self, tensor: Tensor, slot: Slot, dtype: DTypeLike) -> None:
        """Write a tensor, or the slot's rows of it, into the parts. Its numbers must be finite in `dtype`."""
        transposed = slot.transposed != tensor.transposed
        parts = [_in_file(part, tensor, slot) for part in self.parts]
        count, step = len(parts[0][0]), block_rows(tensor, len({part[0] for part in parts}))
        if self.kind == "int8" and not transposed:  # only all rows tell a channel's scale
            step = count
        elif self.kind == "nf4":
            step = max(step, BLOCK)
        for start in range(0, count, step):
            blocks = [(part[0][start : start + step], *part[1:]) for part in parts]
            rows, channels = self._read(blocks, tensor, slot, dtype)
            corner = [0] * len(parts[0])
            corner[-1 if transposed else 0] = start
            if slot.layer is not None:
                corner.insert(0, slot.layer)
            self.buffers = _write(
                self.buffers, rows, channels, tuple(corner), kind=self.kind, transposed=transposed, mesh=self.mesh
            )
            jax.block_until_ready(self.buffers)  # otherwise blocks pile up in memory

    def _read(self, blocks: list[tuple[range, ...]], tensor: Tensor, slot: Slot, dtype: DTypeLike) -> tuple[Any, Any]:
        """A block for each device, and of int8 the largest magnitude of each of its output channels."""
        found: dict[range, tuple[tuple[range, ...], np.ndarray]] = {}
        pieces, channels = [], []
        for block in blocks:
            if block[0] not in found:
                region = self._region([other for other in blocks if other[0] == block[0]], tensor, slot)
                found[block[0]] = region, _checked(tensor, region, dtype)
            region, numbers = found[block[0]]
            mine = tuple(
                slice(own.start - of.start, own.stop - of.start) for own, of in zip(block, region, strict=True)
            )
            pieces.append(numbers[mine])
            if self.kind == "int8":
                outputs = 0 if slot.transposed != tensor.transposed else 1
                channels.append(largest(numbers, 1 - outputs)[mine[outputs]])
        return self._spread(pieces), self._spread(channels) if channels else None

    def _region(self, blocks: list[tuple[range, ...]], tensor: Tensor, slot: Slot) -> tuple[range, ...]:
        """What to read of a tensor for blocks of the same rows."""
        rows, *columns = blocks[0]
        if not columns:
            return (rows,)
        if self.kind == "int8" and slot.transposed == tensor.transposed:
            rows = range(tensor.shape[0])
        elif self.kind == "int8":
            return rows, range(tensor.shape[1])
        return rows, range(min(block[1].start for block in blocks), max(block[1].stop for block in blocks))

    def _spread(self, pieces: list[np.ndarray]) -> Any:
        """Pieces of equal shapes, each on its device."""
        if self.mesh is None:
            return pieces[0]
        first, *rest = pieces[0].shape
        own = [jax.device_put(piece, device) for piece, device in zip(pieces, self.mesh.devices, strict=True)]
        shape = (len(pieces) * first, *rest)
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, OWN), own)


def block_rows(tensor: Tensor, parts: int = 1) -> int:
    """How many rows of so many parts to read at a time: a power of two, so that one compiled program does for most."""
    return power_of_two_within(BLOCK_BYTES // (4 * math.prod(tensor.shape[1:]) * parts))


def _in_file(part: tuple[slice, ...], tensor: Tensor, slot: Slot) -> tuple[range, ...]:
    """The rows, and columns, of a tensor that belong into a part of the slot's parameter."""
    sizes = tuple(reversed(slot.shape)) if slot.transposed else slot.shape  # of the parameter's axes
    ranges = [range(size)[own] for own, size in zip(part[-len(sizes) :], sizes, strict=True)]
    if slot.transposed != tensor.transposed:
        ranges.reverse()
    fused = 1 if tensor.transposed and len(ranges) == 2 else 0
    ranges[fused] = range(ranges[fused].start + slot.first, ranges[fused].stop + slot.first)
    return tuple(ranges)


def _checked(tensor: Tensor, region: tuple[range, ...], dtype: DTypeLike) -> np.ndarray:
    """The numbers of a region, once they are known to be finite in `dtype`."""
    rows, *columns = region
    whole = not columns or len(columns[0]) == tensor.shape[1]
    numbers = tensor.read(rows.start, rows.stop, None if whole else columns[0])
    if not largest(numbers).max() <= float(jnp.finfo(dtype).max):
        raise UserError(
            f"{tensor.file}: tensor {tensor.name} holds numbers that are not finite, or too large for "
            f"{jnp.dtype(dtype)}; download the model again"
        )
    return numbers


def largest(numbers: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The largest magnitude of floating-point numbers along an axis, or of all; NaN if one of them is.

    Bits are compared: as integers with a sign for the positive numbers, as such without for the negative ones.
    """
    unsigned, signed = f"u{numbers.itemsize}", f"i{numbers.itemsize}"
    positive = np.asarray(numbers.view(signed).max(axis))
    negative = np.asarray(numbers.view(unsigned).max(axis) & np.iinfo(signed).max, signed)
    return np.asarray(np.maximum(positive, negative)).view(numbers.dtype)


@partial(jax.jit, donate_argnums=0, static_argnames=("kind", "transposed", "mesh"))
def _write(
    buffers: Any,
    rows: Array,
    channels: Any,
    corner: tuple[ArrayLike, ...],
    *,
    kind: BaseKind,
    transposed: bool,
    mesh: Any,
) -> Any:
    """The buffers with a block at this corner of each device's part."""

    def write(buffers: Any, rows: Array, channels: Any, corner: tuple[ArrayLike, ...]) -> Any:
        block = rows.T if transposed else rows
        if kind == "native":
            return _updated(buffers, block, corner)
        new = quantise(block, kind, channels)
        leaves = map(_updated, jax.tree.leaves(buffers), jax.tree.leaves(new), new.corners(*corner))
        return type(new)(*leaves)

    if mesh is not None:
        write = jax.shard_map(
            write, mesh=mesh, in_specs=(OWN, OWN, OWN, PartitionSpec()), out_specs=OWN, check_vma=False
        )
    return write(buffers, rows, channels, corner)


def _updated(buffer: Array, block: Array, corner: tuple[ArrayLike, ...]) -> Array:
    block = block.reshape((1,) * (buffer.ndim - block.ndim) + block.shape)
    if buffer.dtype == jnp.uint16:
        block = jax.lax.bitcast_convert_type(block.astype(jnp.bfloat16), jnp.uint16)
    return jax.lax.dynamic_update_slice(buffer, block.astype(buffer.dtype), corner)


def _kept_as(dtype: DTypeLike, mesh: Mesh | None) -> Any:
    """The type of a buffer. XLA for CPUs would convert all of a bfloat16 buffer to float32 and back for each block."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return jnp.uint16 if dtype == jnp.bfloat16 and platform == "cpu" else dtype


def _seen_as(dtype: DTypeLike, array: Array) -> Array:
    """A device's array, whose bits are of this type. On a CPU it is the same memory."""
    if array.dtype == dtype:
        return array
    (device,) = array.devices()
    return jax.device_put(np.asarray(array).view(dtype), device)
