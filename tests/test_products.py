"""Matrix products with narrow operands, against jnp.einsum on operands rounded by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.products import product

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
def test_without_a_narrow_type_it_is_einsum(spec):
    x, y, _ = operands(spec)
    np.testing.assert_array_equal(product(spec, x, y), jnp.einsum(spec, x, y))


@pytest.mark.parametrize("spec", SPECS)
def test_operands_are_rounded_and_sums_are_not(spec):
    x, y, _ = operands(spec)
    got = product(spec, x, y, jnp.bfloat16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, jnp.einsum(spec, rounded(x), rounded(y)), rtol=1e-5, atol=1e-5)
    assert np.abs(got - jnp.einsum(spec, x, y)).max() > 1e-4  # it does round


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_einsum_s_on_rounded_operands_and_cotangents(spec):
    x, y, cotangent = operands(spec)
    _, backward = jax.vjp(lambda x, y: product(spec, x, y, jnp.bfloat16), x, y)
    _, expected = jax.vjp(lambda x, y: jnp.einsum(spec, x, y), rounded(x), rounded(y))
    for got, want in zip(backward(cotangent), expected(rounded(cotangent)), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gradients_come_in_the_operands_types():
    x, y, cotangent = operands("...d,vd->...v")
    _, backward = jax.vjp(lambda x, y: product("...d,vd->...v", x, y, jnp.bfloat16), x.astype(jnp.bfloat16), y)
    assert [g.dtype for g in backward(cotangent)] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_narrow_already_stays_so_backwards(spec):
    x, y, cotangent = (array.astype(jnp.bfloat16) for array in operands(spec))
    got, backward = jax.vjp(lambda x, y: product(spec, x, y, dtype=jnp.bfloat16), x, y)
    expected, backward_wide = jax.vjp(lambda x, y: jnp.einsum(spec, x, y), *(a.astype(jnp.float32) for a in (x, y)))
    pairs = zip((got, *backward(cotangent)), (expected, *backward_wide(cotangent.astype(jnp.float32))), strict=True)
    for narrow, wide in pairs:
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(narrow.astype(jnp.float32), wide, rtol=2**-7, atol=2**-6)
    assert "f32" not in str(jax.make_jaxpr(backward)(cotangent)).replace("preferred_element_type=float32", "")


def test_a_model_in_bfloat16_multiplies_nothing_in_float32():
    """JAX's own gradient of a product summed in float32 would: half as fast on a GPU."""
    x, y, cotangent = operands("...d,vd->...v")

    def loss(x):
        return jnp.sum(cotangent * product("...d,vd->...v", x, y.astype(jnp.bfloat16)))

    hlo = jax.jit(jax.grad(loss)).lower(x.astype(jnp.bfloat16)).as_text()
    dots = [line.split(":")[-1].split("->")[0] for line in hlo.splitlines() if "dot_general" in line]
    assert dots
    assert not any("f32" in dot.replace("bf16", "") for dot in dots)
