"""Grouped-query attention with rotary positions, as every model of the Llama family has it.

Axes: B any batch axes, S sequence, C keys (of the sequence or a cache), H query heads, K key/value heads, h head width,
N heads of either kind.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from t2l_jax.decoder.precision import product

CAUSAL_BLOCKS, LONG_ROW = 8, 256  # in how many blocks the queries of a row of at least so many tokens go


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of low rotary frequencies beyond the length of pre-training."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True)
class AttentionConfig:
    """Heads, rotary positions and masks. `windows` holds each layer's sliding window (None: the whole past)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    scale: float | None = None  # of the scores; None: 1/sqrt(head_dim)
    softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False


def rope_frequencies(config: AttentionConfig) -> Float[Array, " half"]:
    """Radians per position of each pair of channels (RoFormer, arXiv 2104.09864; Llama 3.1's scaling on top)."""
    half = config.head_dim // 2
    freq = 1.0 / config.rope_theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    # Turns completed within the original length decide: few turns are slowed down, many kept, in between blended.
    turns = scaling.original_length * freq / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = jnp.clip(blend, 0.0, 1.0)
    return blend * freq + (1 - blend) * freq / scaling.factor


def rotate(x: Float[Array, "*B S N h"], angles: Float[Array, "*B S h/2"]) -> Float[Array, "*B S N h"]:
    """Rotate the channel pairs (j, j + h/2) of every head by the angles of its position."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K C h"],
    v: Float[Array, "*B K C h"],
    mask: Bool[Array, "*B S C"],
    config: AttentionConfig,
    narrow: DTypeLike | None = None,
) -> Float[Array, "*B S H*h"]:
    """Grouped-query attention, softmax in float32. `mask` is True where a query may look.

    The queries of all heads that share a key head stand together: one matrix product per key head.
    """
    *batch, length, _, _ = q.shape
    grouped = (*batch, config.num_kv_heads, config.num_heads // config.num_kv_heads, length)
    q = jnp.moveaxis(q.reshape(*batch, length, *grouped[-3:-1], config.head_dim), -4, -2)
    q = q.reshape(*batch, config.num_kv_heads, -1, config.head_dim)
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    scores = scale * product("...qh,...ch->...qc", q, k, narrow)
    if config.softcap is not None:
        scores = config.softcap * jnp.tanh(scores / config.softcap)
    mask = jnp.broadcast_to(mask[..., None, None, :, :], (*batch, 1, *grouped[-2:], mask.shape[-1]))
    scores = jnp.where(mask.reshape(*batch, 1, -1, mask.shape[-1]), scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = product("...qc,...ch->...qh", weights, v, narrow, v.dtype)
    out = jnp.moveaxis(out.reshape(*grouped, config.head_dim), -2, -4)
    return out.reshape(*batch, length, -1)


def attend_causally(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K S h"],
    v: Float[Array, "*B K S h"],
    mask: Bool[Array, "*B S S"],
    config: AttentionConfig,
    narrow: DTypeLike | None = None,
    long_row: int = LONG_ROW,
) -> Float[Array, "*B S H*h"]:
    """`attend` where nobody may look at what stands after it: of long rows that half is not computed.

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
            narrow,
        )
        for end in (size * (block + 1) for block in range(blocks))
    ]
    return jnp.concatenate(parts, axis=-2)
