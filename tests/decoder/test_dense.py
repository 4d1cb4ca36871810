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
    lora = {"a": normal(*tasks, 2, 6, seed=4), "b": normal(*tasks, 5, 2, seed=5)}
    plain = x @ params["kernel"] + params.get("bias", 0)
    expected = plain + SCALE * dropped @ lora["a"].swapaxes(-1, -2) @ lora["b"].swapaxes(-1, -2)

    dense = LoraDense(5, SCALE, use_bias, name="q_proj")
    variables, x, dropped, lora = jax.tree.map(jnp.asarray, ({"params": params}, x, dropped, lora))
    np.testing.assert_allclose(dense.apply(variables, x, dropped, lora), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dense.apply(variables, x, dropped, None), plain, rtol=1e-4, atol=1e-4)
    shapes = jax.eval_shape(dense.init, jax.random.key(0), x, x, None)["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {name: leaf.shape for name, leaf in params.items()}


def test_everything_is_computed_in_the_type_of_the_input():
    params = {"kernel": normal(6, 5, seed=2), "bias": normal(5, seed=3)}
    lora = {"a": normal(2, 6, seed=4), "b": normal(5, 2, seed=5)}
    variables, lora = jax.tree.map(jnp.asarray, ({"params": params}, lora))
    x = jnp.asarray(normal(4, 6), jnp.bfloat16)
    got = LoraDense(5, SCALE, True, name="q_proj").apply(variables, x, x, lora)
    wide = x.astype(jnp.float32)
    expected = LoraDense(5, SCALE, True, name="q_proj").apply(variables, wide, wide, lora)
    assert (got.dtype, expected.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=0.05, atol=0.1)
