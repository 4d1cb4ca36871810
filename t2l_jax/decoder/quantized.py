"""Kernels of the frozen base LLM in 8 or 4 bits a weight, and the product with them.

    int8    integers from -127 to 127 and a scale for each output channel
    nf4     one of 16 levels for each weight, and a scale for each block of 64 inputs of an output channel: a normal
            distribution's quantiles (QLoRA, arXiv 2305.14314, appendix E)

A weight is its integer, or its level, times its scale. Only weights are quantised: what is multiplied with them keeps
its type. The backward pass keeps the quantised kernel and nothing else; the kernel has no gradient.

qwix, the maintained library, has such arrays too, but its nf4 holds one code an element, twice the memory.

Axes: L layers (none within a layer), i input width, o output width, n blocks of inputs, h = i / 2.
"""

from functools import partial
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, UInt8

from t2l_jax.decoder.precision import rounded_einsum
from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS
from t2l_jax.sharding import constrain, parts

BaseKind = Literal["native", "int8", "nf4"]
BLOCK = 64  # inputs that share a scale in nf4
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@struct.dataclass
class Int8Kernel:
    """A kernel as integers with a scale for each output channel."""

    values: Int8[Array, "*L i o"]
    scale: Float32[Array, "*L o"]

    def weights(self, dtype: DTypeLike) -> Float[Array, "*L i o"]:
        """The kernel as numbers."""
        return (self.values.astype(jnp.float32) * self.scale[..., None, :]).astype(dtype)

    def constrained(self, mesh: Mesh | None, inputs: str | None, outputs: str | None) -> "Int8Kernel":
        """A layer's kernel divided over a mesh by the logical axes of its inputs and outputs."""
        return Int8Kernel(constrain(mesh, self.values, inputs, outputs), constrain(mesh, self.scale, outputs))

    @staticmethod
    def corners(layer: Any, row: Any, column: Any) -> tuple[tuple[Any, ...], ...]:
        """Where values and scales of a block begin that begins here in the kernel [L, i, o]."""
        return (layer, row, column), (layer, column)


@struct.dataclass
class Nf4Kernel:
    """A kernel as codes of levels with a scale for each block of inputs.

    Two codes share a byte, since not all devices pack arrays of 4 bits or send them to each other: of a block's 64
    codes of an output, the lower halves of its 32 bytes hold the first 32.
    """

    codes: UInt8[Array, "*L h o"]
    scales: Float32[Array, "*L n o"]

    def weights(self, dtype: DTypeLike) -> Float[Array, "*L i o"]:
        """The kernel as numbers."""
        *layers, blocks, outputs = self.scales.shape
        packed = self.codes.reshape(*layers, blocks, BLOCK // 2, outputs)
        codes = jnp.concatenate([packed & 15, packed >> 4], axis=-2)
        weights = (_level(codes) * self.scales[..., None, :]).astype(dtype)
        return weights.reshape(*layers, blocks * BLOCK, outputs)

    def constrained(self, mesh: Mesh | None, inputs: str | None, outputs: str | None) -> "Nf4Kernel":
        """A layer's kernel divided over a mesh by the logical axes of its inputs and outputs."""
        return Nf4Kernel(*(constrain(mesh, leaf, inputs, outputs) for leaf in (self.codes, self.scales)))

    @staticmethod
    def corners(layer: Any, row: Any, column: Any) -> tuple[tuple[Any, ...], ...]:
        """Where values and scales of a block begin that begins here in the kernel [L, i, o]."""
        return (layer, row // 2, column), (layer, row // BLOCK, column)


QuantKernel = Int8Kernel | Nf4Kernel
Stored = jax.ShapeDtypeStruct | QuantKernel  # what a parameter is kept as: shapes and types


def quantise(
    kernel: Float[Array, "*L i o"], kind: BaseKind, largest: Float[Array, "*L o"] | None = None
) -> QuantKernel:
    """A kernel in 8 or 4 bits. `largest`: the largest magnitude of each output channel, if this is a part of it."""
    kernel = kernel.astype(jnp.float32)
    if kind == "int8":
        largest = jnp.max(jnp.abs(kernel), axis=-2) if largest is None else largest.astype(jnp.float32)
        scale = jnp.where(largest > 0, largest / 127, 1.0)
        return Int8Kernel(jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale)
    *layers, inputs, outputs = kernel.shape
    blocks = kernel.reshape(*layers, inputs // BLOCK, BLOCK, outputs)
    scales = jnp.max(jnp.abs(blocks), axis=-2)
    relative = blocks / jnp.where(scales > 0, scales, 1.0)[..., None, :]
    between = [(low + high) / 2 for low, high in pairwise(LEVELS)]
    codes = sum(((relative > middle).astype(jnp.uint8) for middle in between), jnp.zeros(blocks.shape, jnp.uint8))
    packed = codes[..., : BLOCK // 2, :] | (codes[..., BLOCK // 2 :, :] << 4)
    return Nf4Kernel(packed.reshape(*layers, inputs // 2, outputs), scales)


def stored_as(path: str, shape: tuple[int, ...], dtype: DTypeLike, kind: BaseKind) -> Stored:
    """Shapes and types of what a decoder parameter of this path and shape is kept as."""
    whole = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    if kind == "native" or not path.endswith("/kernel"):
        return whole
    kept: QuantKernel = jax.eval_shape(partial(quantise, kind=kind), whole)
    return kept


def _level(codes: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """The levels of codes, chosen bit by bit, which is faster than looking them up in a table."""
    levels = [jnp.asarray(level, jnp.float32) for level in LEVELS]
    for bit in range(4):
        high = (codes >> bit) & 1 == 1
        levels = [jnp.where(high, odd, even) for even, odd in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*B i"], kernel: QuantKernel, matmul_dtype: DTypeLike | None = None
) -> Float[Array, "*B o"]:
    """x times a layer's kernel, in the type of x. The scales of int8 multiply what integers have summed up to."""
    if isinstance(kernel, Int8Kernel):
        out = rounded_einsum("...i,io->...o", x, kernel.values.astype(x.dtype), matmul_dtype)
        return (out * jnp.expand_dims(kernel.scale, range(x.ndim - 1))).astype(x.dtype)
    return rounded_einsum("...i,io->...o", x, kernel.weights(x.dtype), matmul_dtype, x.dtype)


def _forward(x: Array, kernel: QuantKernel, matmul_dtype: Any) -> tuple[Array, QuantKernel]:
    return product(x, kernel, matmul_dtype), kernel


def _backward(matmul_dtype: Any, kernel: QuantKernel, cotangent: Array) -> tuple[Array, None]:
    dtype = cotangent.dtype  # that of x
    if isinstance(kernel, Int8Kernel):
        scale = jnp.expand_dims(kernel.scale, range(cotangent.ndim - 1))
        cotangent = (cotangent.astype(jnp.float32) * scale).astype(dtype)
        weights = kernel.values.astype(dtype)
    else:
        weights = kernel.weights(dtype)
    return rounded_einsum("...o,io->...i", cotangent, weights, matmul_dtype, dtype), None


product.defvjp(_forward, _backward)


def check_blocks(widths: dict[str, tuple[int, int]], kind: BaseKind, mesh: Mesh | None = None) -> None:
    """Raise UserError if the blocks of nf4 do not divide a projection's inputs, or a mesh does not divide the blocks.

    `widths` are those of `DecoderConfig.projection_widths`.
    """
    if kind != "nf4":
        return
    for name, (inputs, _) in widths.items():
        if inputs % BLOCK:
            raise UserError(
                f"compute.base: nf4 has a scale for {BLOCK} inputs, which do not divide {name}'s {inputs}: use int8"
            )
        axis = PROJECTIONS[name].axes[0]
        if mesh is not None and inputs // BLOCK % parts(mesh, axis):
            where = "fsdp" if axis == "width" else "tensor"
            raise UserError(
                f"mesh.{where}: {mesh.shape[where]} devices do not divide {name}'s {inputs // BLOCK} blocks of {BLOCK} "
                "inputs: choose a divisor, or compute.base int8"
            )
