"""The linear map of a projection against numpy, with one LoRA for all rows and with one a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder.dense import LoraDense

SCALE = 2.5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("tasks", [(), (3,)])
def test_it_is_kernel_bias_and_scaled_lora(tasks, use_bias):
    x, dropped = normal(3, 4, 6), normal(3, 4, 6, seed=1)
    params = {"kernel": normal(6, 5, seed=2)} | ({"bias": normal(5, seed=3)} if use_bias else {})
    a, b = normal(*tasks, 2, 6, seed=4), normal(*tasks, 5, 2, seed=5)
    dense = LoraDense(5, SCALE, use_bias)
    got = dense.apply({"params": params}, x, dropped, {"a": jnp.asarray(a), "b": jnp.asarray(b)})
    plain = x @ params["kernel"] + params.get("bias", 0)
    expected = plain + SCALE * dropped @ a.swapaxes(-1, -2) @ b.swapaxes(-1, -2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dense.apply({"params": params}, x, dropped, None), plain, rtol=1e-4, atol=1e-4)
    shapes = jax.eval_shape(dense.init, jax.random.key(0), jnp.asarray(x), jnp.asarray(x), None)["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {name: leaf.shape for name, leaf in params.items()}


def test_everything_is_computed_in_the_type_of_the_input():
    x = jnp.asarray(normal(4, 6), jnp.bfloat16)
    params = {"kernel": normal(6, 5, seed=2), "bias": normal(5, seed=3)}
    lora = {"a": jnp.asarray(normal(2, 6, seed=4)), "b": jnp.asarray(normal(5, 2, seed=5))}
    got = LoraDense(5, SCALE, True).apply({"params": params}, x, x, lora)
    assert got.dtype == jnp.bfloat16
    wide = x.astype(jnp.float32)
    expected = LoraDense(5, SCALE, True).apply({"params": params}, wide, wide, lora)
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=0.05, atol=0.1)
