"""Attention in blocks against attention as it is defined. (The decoder's tests hold both against transformers.)"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder.attention import CAUSAL_BLOCKS, LONG_ROW, AttentionConfig, LayerAttention, attend, attend_causally

HEADS = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, layers=(LayerAttention(),))


@pytest.mark.parametrize("length", [LONG_ROW // 2, LONG_ROW, LONG_ROW + 1, 2 * LONG_ROW])
def test_attention_in_blocks_is_attention(length):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, length, 4, 8))
    k, v = (jax.random.normal(key, (2, 2, length, 8)) for key in keys[1:3])
    mask = jnp.tril(jax.random.bernoulli(keys[3], 0.3, (2, length, length)))
    mask |= jnp.eye(length, dtype=bool)[None]  # a query that sees nothing has no meaning

    def both(function):
        return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(jnp.tanh(function(*qkv, mask, HEADS))), (0, 1, 2)))

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=0, atol=1e-3), both(attend_causally)(q, k, v), both(attend)(q, k, v)
    )


@pytest.mark.parametrize(("long_row", "products"), [(LONG_ROW, 2 * CAUSAL_BLOCKS), (LONG_ROW + 1, 2)])
def test_shorter_rows_attend_whole(long_row, products):
    q, k = jnp.zeros((1, LONG_ROW, 4, 8)), jnp.zeros((1, 2, LONG_ROW, 8))
    mask = jnp.tri(LONG_ROW, dtype=bool)[None]
    program = str(jax.make_jaxpr(lambda: attend_causally(q, k, k, mask, HEADS, long_row=long_row))())
    assert program.count("dot_general") == products
