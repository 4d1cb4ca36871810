"""Attention as it is handed to cuDNN, computed by XLA on the CPU, against attention with scores: masks, windows."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder import Decoder, DecoderConfig, model
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.decoder.cache import SHARED
from t2l_jax.decoder.cudnn import attend_with_cudnn
from t2l_jax.lora import init_adapter


@pytest.mark.parametrize(("scale", "length"), [(None, 32), (0.5, 128)])  # 128: what the kernel for TPUs would take
def test_values_and_gradients_are_those_of_scores(monkeypatch, scale, length):
    """Packed rows whose examples share a prefix, padding, a sliding window in one layer, two query heads a key head."""
    heads = AttentionConfig(4, 2, 8, (LayerAttention(window=5), LayerAttention()), scale=scale)
    config = DecoderConfig(vocab_size=32, width=16, num_layers=2, mlp_width=16, attention=heads)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(32, size=(2, 3, length)), jnp.int32)
    segments = jnp.asarray(np.repeat([SHARED, SHARED + 1, SHARED + 2, 0], length // 4), jnp.int32)
    segments = jnp.broadcast_to(segments, tokens.shape)
    decoder = Decoder(config)
    params = jax.jit(decoder.init)(jax.random.key(1), tokens)["params"]
    params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    adapter = jax.vmap(partial(init_adapter, spec=config.lora_spec(rank=2)))(jax.random.split(jax.random.key(0), 2))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)

    def loss(adapter, decoder):
        hidden, _ = decoder.apply({"params": params}, tokens, adapter, segments=segments)
        real = jnp.where((segments > 0)[..., None], hidden, 0)
        return jnp.mean(real**2), real

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, expected), slope = run(adapter, decoder)
    monkeypatch.setattr(model, "attend_with_cudnn", partial(attend_with_cudnn, implementation="xla"))
    (_, found), gradient = run(adapter, decoder.clone(attention="cudnn"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-3), gradient, slope)
    without = decoder.clone(config=replace(config, attention=replace(heads, layers=(LayerAttention(),) * 2)))
    assert not np.allclose(run(adapter, without)[0][1], expected, atol=1e-3)
