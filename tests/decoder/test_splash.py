"""The splash kernel, interpreted, against attention with scores: windows, soft caps, packed rows, devices."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder import Decoder, DecoderConfig, splash
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.decoder.splash import fits, windows_of
from t2l_jax.lora import Adapter, init_adapter
from t2l_jax.sharding import batch_sharding, make_mesh, place_base

CONFIG = DecoderConfig(
    vocab_size=32,
    width=16,
    num_layers=3,
    mlp_width=16,
    attention=AttentionConfig(
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        layers=(LayerAttention(window=40), LayerAttention(), LayerAttention(window=40)),
        softcap=5.0,
        scale=0.5,
    ),
)
LENGTH = 256
RNG = np.random.default_rng(0)
# Rows of several examples, none of which begins with what others begin with; padding at the end.
SEGMENTS = jnp.repeat(jnp.asarray([[[2, 3, 4, 0]], [[2, 2, 3, 3]]], jnp.int32), LENGTH // 4, axis=2)
POSITIONS = jnp.asarray(np.stack([np.arange(LENGTH) % 64, np.arange(LENGTH) % 128])[:, None], jnp.int32)
TOKENS = jnp.asarray(RNG.integers(CONFIG.vocab_size, size=(2, 1, LENGTH)), jnp.int32)


def adapters() -> Adapter:
    keys = jax.random.split(jax.random.key(0), 2)
    made = jax.vmap(partial(init_adapter, spec=CONFIG.lora_spec(rank=2)))(keys)
    return jax.tree.map(lambda leaf: leaf + 0.1, made)


def loss(decoder: Decoder, adapter: Adapter, params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden, _ = decoder.apply(
        {"params": params}, tokens, adapter, segments=jnp.asarray(SEGMENTS), positions=jnp.asarray(POSITIONS)
    )
    real = jnp.where((SEGMENTS > 0)[..., None], hidden, 0)
    return jnp.mean(real**2), real


@pytest.mark.parametrize(("fsdp", "tensor", "softcap"), [(1, 1, None), (2, 2, 5.0)])
def test_the_kernel_computes_what_scores_do(
    fsdp: int, tensor: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splash, "BLOCK", 128)  # several blocks
    config = replace(CONFIG, attention=replace(CONFIG.attention, softcap=softcap))
    decoder, adapter = Decoder(config), adapters()
    params = jax.jit(decoder.init)(jax.random.key(1), TOKENS)["params"]
    params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    run = partial(jax.value_and_grad, argnums=1, has_aux=True)
    (_, expected), slope = jax.jit(run(loss), static_argnums=0)(decoder, adapter, params, TOKENS)

    mesh = make_mesh(fsdp, tensor, 1)
    placed = place_base(mesh, params), jax.device_put(TOKENS, batch_sharding(mesh))
    kernel = decoder.clone(attention="splash-interpreted", mesh=mesh)
    (_, found), gradient = jax.jit(run(loss), static_argnums=0)(kernel, adapter, *placed)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-3), gradient, slope)


def test_the_kernel_takes_rows_of_whole_lanes() -> None:
    assert [fits(length) for length in (LENGTH, LENGTH - 1)] == [True, False]
    assert windows_of(CONFIG.attention) == (40, None)
