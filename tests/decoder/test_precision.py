"""Matrix products with rounded operands, against jnp.einsum on operands rounded by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder.precision import rounded_einsum

SPECS = {
    "...i,io->...o": ((2, 3, 5), (5, 7)),
    "...qh,...ch->...qc": ((2, 3, 5), (2, 4, 5)),
    "...d,vd->...v": ((3, 5), (7, 5)),
}


def operands(spec: str):
    left, right = SPECS[spec]
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = jax.random.normal(keys[0], left), jax.random.normal(keys[1], right)
    cotangent = jax.random.normal(keys[2], jnp.einsum(spec, x, y).shape)
    return x, y, cotangent


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize("spec", SPECS)
def test_operands_are_rounded_and_sums_are_not(spec):
    x, y, _ = operands(spec)
    got = rounded_einsum(spec, x, y, jnp.bfloat16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, jnp.einsum(spec, rounded(x), rounded(y)), rtol=1e-5, atol=1e-5)
    assert np.abs(got - jnp.einsum(spec, x, y)).max() > 1e-4  # it does round


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_einsum_s_on_rounded_operands_and_cotangents(spec):
    x, y, cotangent = operands(spec)
    _, backward = jax.vjp(lambda x, y: rounded_einsum(spec, x, y, jnp.bfloat16), x, y)
    _, expected = jax.vjp(lambda x, y: jnp.einsum(spec, x, y), rounded(x), rounded(y))
    for got, want in zip(backward(cotangent), expected(rounded(cotangent)), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_come_in_the_operands_types():
    x, y, cotangent = operands("...d,vd->...v")
    _, backward = jax.vjp(lambda x, y: rounded_einsum("...d,vd->...v", x, y, jnp.bfloat16), x.astype(jnp.bfloat16), y)
    assert [g.dtype for g in backward(cotangent)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_operands_are_summed_in_float32_and_have_bfloat16_gradients(dtype):
    """A sum in bfloat16 would end at 256."""
    x, y = jnp.ones((1, 4096), jnp.bfloat16), jnp.ones((4096, 512), jnp.bfloat16)
    got, backward = jax.vjp(lambda x, y: rounded_einsum("...i,io->...o", x, y, dtype=dtype), x, y)
    to_x, to_y = backward(jnp.ones_like(got))
    assert (got.dtype, to_x.dtype, to_y.dtype) == (dtype, jnp.bfloat16, jnp.bfloat16)
    assert (got == 4096).all()
    assert (to_x == 512).all()
    assert (to_y == 1).all()
