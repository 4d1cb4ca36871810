"""Grouped-query attention with rotary positions, as every model of the Llama family has it.

Axes: B any batch axes, S sequence, C keys (of the sequence or a cache), H query heads, K key/value heads, h head width,
N heads of either kind, L layers.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.decoder.precision import rounded_einsum
from t2l_jax.decoder.rotary_scaling import RotaryScaling

CAUSAL_BLOCKS, LONG_ROW = 8, 256  # blocks of queries of a row of at least LONG_ROW tokens


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (RoFormer, arXiv 2104.09864): the base of their frequencies, and how these are scaled."""

    theta: float = 10_000.0
    scaling: RotaryScaling | None = None


@dataclass(frozen=True)
class LayerAttention:
    """What may differ from layer to layer: the sliding window and the rotary positions."""

    window: int | None = None  # None: the whole past
    rotary: Rotary | None = Rotary()  # None: no positions


@dataclass(frozen=True)
class AttentionConfig:
    """Heads, biases and norms, which all layers share, and what each layer has of its own."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerAttention, ...]
    rotary_width: int | None = None  # channels of a head that are rotated, from its first one on; None: all
    scale: float | None = None  # of the scores; None: 1/sqrt(head_dim)
    softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = None  # what one norm of queries and keys spans


def rotary_frequencies(rotary: Rotary | None, width: int) -> Float[Array, " half"]:
    """Radians per position of each pair of the `width` channels that are rotated; 0 without rotary positions."""
    half = width // 2
    if rotary is None:
        return jnp.zeros(half, jnp.float32)
    freq = 1.0 / rotary.theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    return freq if rotary.scaling is None else rotary.scaling.scale(freq, rotary.theta)


def rotary_angles(
    config: AttentionConfig, positions: Int[Array, "*B S"]
) -> tuple[Float[Array, "n *B S half"], Int[Array, " L"], Float[Array, " L"] | None]:
    """The angles of each of the n different rotary settings of the layers, and each layer's setting by its number.

    The last is each layer's factor of cosines and sines; None if it is 1 for all of them.
    """
    settings = list(dict.fromkeys(layer.rotary for layer in config.layers))
    places, axes = positions[..., None].astype(jnp.float32), range(positions.ndim)
    width = config.rotary_width or config.head_dim
    angles = jnp.stack([places * jnp.expand_dims(rotary_frequencies(rotary, width), axes) for rotary in settings])
    magnitudes = [
        layer.rotary.scaling.magnitude if layer.rotary and layer.rotary.scaling else 1.0 for layer in config.layers
    ]
    return (
        angles,
        jnp.asarray([settings.index(layer.rotary) for layer in config.layers], jnp.int32),
        None if set(magnitudes) == {1.0} else jnp.asarray(magnitudes, jnp.float32),
    )


def rotate(
    x: Float[Array, "*B S N h"], angles: Float[Array, "*B S half"], magnitude: Float[Array, ""] | None = None
) -> Float[Array, "*B S N h"]:
    """Rotate the channel pairs (j, j + half) of every head by the angles of its position, and stretch by `magnitude`.

    Channels from 2 half on stay as they are.
    """
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    if magnitude is not None:
        cos, sin = magnitude * cos, magnitude * sin
    half = angles.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K C h"],
    v: Float[Array, "*B K C h"],
    mask: Bool[Array, "*B S C"],
    config: AttentionConfig,
    matmul_dtype: DTypeLike | None = None,
) -> Float[Array, "*B S H*h"]:
    """Grouped-query attention, softmax in float32. `mask` is True where a query may look.

    The queries of all heads that share a key head stand together: one matrix product per key head.
    """
    *batch, length, _, _ = q.shape
    grouped = (*batch, config.num_kv_heads, config.num_heads // config.num_kv_heads, length)
    q = jnp.moveaxis(q.reshape(*batch, length, *grouped[-3:-1], config.head_dim), -4, -2)
    q = q.reshape(*batch, config.num_kv_heads, -1, config.head_dim)
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    scores = scale * rounded_einsum("...qh,...ch->...qc", q, k, matmul_dtype)
    if config.softcap is not None:
        scores = config.softcap * jnp.tanh(scores / config.softcap)
    mask = jnp.broadcast_to(mask[..., None, None, :, :], (*batch, 1, *grouped[-2:], mask.shape[-1]))
    scores = jnp.where(mask.reshape(*batch, 1, -1, mask.shape[-1]), scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = rounded_einsum("...qc,...ch->...qh", weights, v, matmul_dtype, v.dtype)
    out = jnp.moveaxis(out.reshape(*grouped, config.head_dim), -2, -4)
    return out.reshape(*batch, length, -1)


def attend_causally(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K S h"],
    v: Float[Array, "*B K S h"],
    mask: Bool[Array, "*B S S"],
    config: AttentionConfig,
    matmul_dtype: DTypeLike | None = None,
    long_row: int = LONG_ROW,
) -> Float[Array, "*B S H*h"]:
    """`attend` with a causal mask: of long rows the half that is masked out is not computed.

    The queries of a row of at least `long_row` go in blocks, each with the keys up to its end: 9 of 16 scores are
    computed. Shorter rows, and those that cannot be cut into equal blocks, are computed whole.
    """
    length = q.shape[-3]
    blocks = CAUSAL_BLOCKS if length >= long_row and length % CAUSAL_BLOCKS == 0 else 1
    size = length // blocks
    parts = [
        attend(
            q[..., end - size : end, :, :],
            k[..., :end, :],
            v[..., :end, :],
            mask[..., end - size : end, :end],
            config,
            matmul_dtype,
        )
        for end in (size * (block + 1) for block in range(blocks))
    ]
    return jnp.concatenate(parts, axis=-2)
