"""The key/value cache of generation.

Axes: B any batch axes, S sequence, C cache slots, L layers, K key/value heads, h head width.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from t2l_jax.decoder.attention import AttentionConfig

SHARED = 1  # the segment that every other one of its row begins with


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, and what the mask needs to know about them.

    `slot` is where the next tokens go; `segments` is 0 for a slot that holds nothing.
    """

    keys: Float[Array, "L *B K C h"]
    values: Float[Array, "L *B K C h"]
    positions: Int[Array, "*B C"]
    segments: Int[Array, "*B C"]
    slot: Int[Array, ""]


def init_cache(config: AttentionConfig, batch_shape: tuple[int, ...], length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with room for `length` tokens a row."""
    kv = (len(config.layers), *batch_shape, config.num_kv_heads, length, config.head_dim)
    blank = jnp.zeros((*batch_shape, length), jnp.int32)
    return Cache(jnp.zeros(kv, dtype), jnp.zeros(kv, dtype), blank, blank, jnp.zeros((), jnp.int32))


def write_cache(
    cache: Cache, k: Float[Array, "*B K S h"], v: Float[Array, "*B K S h"], layer: Int[Array, ""]
) -> tuple[Cache, Float[Array, "*B K C h"], Float[Array, "*B K C h"]]:
    """Put new keys and values at the cache's slot of this layer; return the cache and that layer's whole k and v."""
    start = _indices(layer, *(0,) * (k.ndim - 2), cache.slot, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, k[None].astype(cache.keys.dtype), start)
    values = jax.lax.dynamic_update_slice(cache.values, v[None].astype(cache.values.dtype), start)
    whole_k, whole_v = (jax.lax.dynamic_index_in_dim(array, layer, keepdims=False) for array in (keys, values))
    return replace(cache, keys=keys, values=values), whole_k, whole_v


def note_places(cache: Cache, positions: Int[Array, "*B S"], segments: Int[Array, "*B S"]) -> Cache:
    """Note positions and segments of the tokens about to be written at the cache's slot."""
    start = _indices(*(0,) * (positions.ndim - 1), cache.slot)
    return replace(
        cache,
        positions=jax.lax.dynamic_update_slice(cache.positions, positions.astype(jnp.int32), start),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments.astype(jnp.int32), start),
    )


def _indices(*values: int | Array) -> tuple[Array, ...]:
    """Indices of one type, as `dynamic_update_slice` takes them, also where integers have 64 bits by default."""
    return tuple(jnp.asarray(value, jnp.int32) for value in values)
