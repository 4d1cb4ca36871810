"""Flash attention on TPUs: JAX's splash kernel, which never forms the scores [S, S] in the device's main memory.

It knows causal masks, sliding windows and segments that see themselves alone. A row whose examples share a prefix has
another mask: such rows take `attention.attend_causally`, which is also the reference of the tests.

Axes: B any batch axes (the first one are tasks), S sequence, H query heads, K key/value heads, h head width.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from t2l_jax.decoder.attention import AttentionConfig
from t2l_jax.sharding import partition, parts

LANES = 128  # a row is a multiple of it
BLOCK = 512  # queries and keys that are computed together
# Keys that the backward pass goes through at a time. For each it writes a gradient of all queries, to be summed: fewer
# are fewer such arrays, and more scores that the causal mask hides.
BACKWARD_BLOCK = 1024


def fits(length: int) -> bool:
    """True if the kernel takes rows of so many tokens."""
    return length % LANES == 0


def windows_of(config: AttentionConfig) -> tuple[int | None, ...]:
    """The different sliding windows of the layers."""
    return tuple(dict.fromkeys(layer.window for layer in config.layers))


def attend_with_splash(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K S h"],
    v: Float[Array, "*B K S h"],
    segments: Int[Array, "*B S"],
    which: Int[Array, ""],
    config: AttentionConfig,
    mesh: Mesh | None,
    residual: str,
    interpret: bool = False,
) -> Float[Array, "*B S H*h"]:
    """Causal attention within segments, with the sliding window number `which` of `windows_of`.

    Tokens stand in the order of their positions, which grow by one within a segment. `residual` is the name under which
    rematerialisation finds what the backward pass needs. `interpret` runs the kernel on any device, slowly.
    """
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    q = (q.astype(jnp.float32) * scale).astype(q.dtype).swapaxes(-3, -2)

    def attend(q: Array, k: Array, v: Array, segments: Array, which: Array) -> Array:
        kernels = [_kernel(window, q.shape, config, residual, interpret) for window in windows_of(config)]
        return jax.lax.switch(which, kernels, q, k, v, segments)

    if mesh is not None and mesh.size > 1:
        task = "task" if len(q) % parts(mesh, "task") == 0 else None
        whole = (None,) * (q.ndim - 4)
        heads, keys = (partition(task, *whole, axis, None, None) for axis in ("heads", "kv_heads"))
        attend = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(heads, keys, keys, partition(task, *whole, None), partition()),
            out_specs=heads,
            check_vma=False,
        )
    out = attend(q, k, v, segments, which).swapaxes(-3, -2)
    return out.reshape(*out.shape[:-2], -1)


def _kernel(
    window: int | None, shape: Sequence[int], config: AttentionConfig, residual: str, interpret: bool
) -> Callable[..., Array]:
    """(q, k, v, segments) -> out, for queries [*B, H, S, h] of one device."""
    *batch, heads, length, _ = shape
    block = max(size for size in range(LANES, BLOCK + 1, LANES) if length % size == 0)
    wide = max(size for size in range(block, max(block, BACKWARD_BLOCK) + 1, block) if length % size == 0)
    square = (length, length)
    mask = CausalMask(square) if window is None else LocalMask(square, (window - 1, 0), 0)
    kernel = make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=BlockSizes(block, block, block, block, wide, block, use_fused_bwd_kernel=True),
        attn_logits_soft_cap=config.softcap,
        residual_checkpoint_name=residual,
        interpret=interpret,
    )

    def attend(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return kernel(q, k, v, SegmentIds(segments, segments))

    for _ in batch:
        attend = jax.vmap(attend)
    return attend
