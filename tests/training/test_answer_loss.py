"""The loss by chunks against PyTorch and against the dense computation, with its gradient; devices change nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy

from t2l_jax.decoder import DecoderConfig, logits
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.sharding import make_mesh, place_base, place_batch
from t2l_jax.training.answer_loss import CHUNK, Scoring, answer_loss, cross_entropy

CONFIG = DecoderConfig(
    vocab_size=96,
    width=16,
    mlp_width=24,
    num_layers=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=8, layers=(LayerAttention(),)),
    logit_softcap=5.0,
)


def given(supervised: int, shape: tuple[int, ...] = (8, 2, 40)):
    """Random hidden states, of whose positions so many are supervised."""
    rng = np.random.default_rng(supervised)
    hidden = jnp.asarray(rng.standard_normal((*shape, CONFIG.width), np.float32))
    table = {"embedding": jnp.asarray(rng.standard_normal((CONFIG.vocab_size, CONFIG.width), np.float32))}
    targets = jnp.asarray(rng.integers(CONFIG.vocab_size, size=shape))
    weights = np.zeros(np.prod(shape), np.float32)
    chosen = rng.permutation(len(weights))[:supervised]
    weights[chosen] = rng.uniform(0.1, 1, supervised)
    return table, hidden, targets, jnp.asarray(weights.reshape(shape))


def dense(scoring, params, hidden, targets, weights):
    scores = logits(scoring.config, params, hidden, scoring.matmul_dtype)
    missed = (jnp.argmax(scores, axis=-1) != targets) & (weights > 0)
    return cross_entropy(scores, targets, weights, scoring.smoothing), missed


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("supervised", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 8 * 2 * 40])
def test_chunks_compute_what_the_dense_loss_does(supervised, smoothing):
    params, *rest = given(supervised)
    scoring = Scoring(CONFIG, smoothing=smoothing)
    (expected, misses), slope = jax.value_and_grad(partial(dense, scoring), argnums=1, has_aux=True)(params, *rest)
    (found, missed), gradient = jax.jit(jax.value_and_grad(partial(answer_loss, scoring), argnums=1, has_aux=True))(
        params, *rest
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(missed, misses)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)
    alone, _ = jax.jit(partial(answer_loss, scoring))(params, *rest)
    np.testing.assert_allclose(alone, found, rtol=1e-6)


@pytest.mark.parametrize("mesh", [(1, 1, 2), (1, 1, 8), (1, 2, 4), (2, 2, 2), (1, 1, 3)])  # fsdp, tensor, data
def test_devices_change_nothing(mesh):
    """Their tasks have numbers of supervised positions of their own: here one has all. Three do not divide them."""
    params, hidden, targets, _ = given(0)
    weights = jnp.zeros(targets.shape).at[3].set(0.01).at[5, 0, 1].set(0.2)
    scoring = Scoring(CONFIG)
    loss = jax.value_and_grad(partial(answer_loss, scoring), argnums=1, has_aux=True)
    (expected, misses), slope = jax.jit(loss)(params, hidden, targets, weights)
    mesh = make_mesh(*mesh)
    spread = jax.jit(partial(loss, mesh=mesh))
    (found, missed), gradient = spread(place_base(mesh, params), hidden, targets, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(missed, misses)
    np.testing.assert_allclose(gradient, slope, atol=1e-7)


def test_where_the_vocabulary_lies_on_several_devices_it_stays_there():
    params, hidden, targets, weights = given(0)
    mesh = make_mesh(tensor=2)
    placed = place_base(mesh, params), *place_batch(mesh, (hidden, targets, weights + 0.01))
    program = jax.jit(partial(answer_loss, Scoring(CONFIG), mesh=mesh)).lower(*placed).compile().as_text()
    assert f"f32[{CHUNK},96]" not in program  # each device scores half of the vocabulary
    assert f"f32[{CHUNK},48]" in program


def test_a_head_of_its_own_and_bfloat16_states():
    params, hidden, targets, weights = given(200)
    untied = replace(CONFIG, tied_head=False)
    params["head"] = params["embedding"][::-1]
    hidden = hidden.astype(jnp.bfloat16)
    for scoring in (Scoring(untied), Scoring(untied, matmul_dtype=jnp.bfloat16)):
        (expected, misses), slope = jax.value_and_grad(partial(dense, scoring), argnums=1, has_aux=True)(
            params, hidden, targets, weights
        )
        (found, missed), gradient = jax.value_and_grad(partial(answer_loss, scoring), argnums=1, has_aux=True)(
            params, hidden, targets, weights
        )
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        np.testing.assert_array_equal(missed, misses)
        np.testing.assert_allclose(gradient.astype(np.float32), slope.astype(np.float32), atol=0.05)


def test_what_is_not_a_number_reaches_the_loss_from_supervised_places_only():
    params, hidden, targets, weights = given(50)
    loss = jax.jit(lambda h, w: answer_loss(Scoring(CONFIG), params, h, targets, w)[0])
    expected = loss(hidden, weights)
    assert weights[-1, -1, -1] == 0
    np.testing.assert_allclose(loss(hidden.at[-1, -1, -1].set(np.nan), weights), expected, rtol=1e-6)
    place = tuple(np.argwhere(np.asarray(weights) > 0)[0])
    assert np.isnan(loss(hidden.at[place].set(np.nan), weights))
    assert np.isnan(loss(hidden, weights.at[place].set(np.nan)))


def test_the_gradient_scales_with_what_is_made_of_the_loss():
    params, hidden, targets, weights = given(50)
    loss = jax.grad(lambda h: 3 * answer_loss(Scoring(CONFIG), params, h, targets, weights)[0])(hidden)
    one = jax.grad(lambda h: answer_loss(Scoring(CONFIG), params, h, targets, weights)[0])(hidden)
    np.testing.assert_allclose(loss, 3 * one, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing):
    rng = np.random.default_rng(0)
    scores, targets = 5 * rng.standard_normal((3, 4, 11), np.float32), rng.integers(11, size=(3, 4))
    found = cross_entropy(jnp.asarray(scores), jnp.asarray(targets), jnp.full((3, 4), 1 / 12), smoothing)
    flat = torch.from_numpy(scores).reshape(12, 11), torch.from_numpy(targets).reshape(12)
    np.testing.assert_allclose(found, torch_cross_entropy(*flat, label_smoothing=smoothing), rtol=1e-5)
