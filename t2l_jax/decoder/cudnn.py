"""Flash attention on NVIDIA GPUs: cuDNN's kernel, which never forms the scores of every head.

It takes any mask, as a number to add for each pair of tokens of a row, which all heads share. It knows no soft caps.

Axes: B any batch axes, S sequence, H query heads, K key/value heads, h head width.
"""

from typing import Literal

import jax
from jaxtyping import Array, Bool, Float

from t2l_jax.decoder.attention import AttentionConfig


def attend_with_cudnn(
    q: Float[Array, "*B S H h"],
    k: Float[Array, "*B K S h"],
    v: Float[Array, "*B K S h"],
    mask: Bool[Array, "*B S S"],
    config: AttentionConfig,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "*B S H*h"]:
    """Attention of a row with itself. `mask` is True where a query may look. xla: the same on any device, slowly."""
    *batch, length, _, _ = q.shape
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k.swapaxes(-3, -2), v.swapaxes(-3, -2)))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask.reshape(-1, 1, length, length), scale=config.scale, implementation=implementation
    )
    return out.reshape(*batch, length, -1)
