"""Matrix products whose operands are rounded to a narrower type while sums, results and gradients keep the wider one.

What a TPU does to float32 by default, for processors that must be asked: a CPU with bfloat16 units multiplies twice as
fast. The gradient is spelled out because JAX's own would multiply a wide cotangent with a narrow operand, which XLA
widens again.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], narrow: DTypeLike | None = None
) -> Float[Array, "..."]:
    """jnp.einsum(spec, x, y) with float32 sums; the operands, and cotangents, are rounded to `narrow` before."""
    if narrow is None:
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
    return _narrow_product(spec, jnp.dtype(narrow), x, y)


def dense_product(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], *_: Any, narrow: DTypeLike | None, **__: Any
) -> Float[Array, "... o"]:
    """`product` of a dense layer, in the type of x: what nn.Dense takes as its `dot_general`."""
    return product("...i,io->...o", x, kernel, narrow).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow_product(spec: str, narrow: Any, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x.astype(narrow), y.astype(narrow), preferred_element_type=jnp.float32)


def _forward(spec: str, narrow: Any, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_product(spec, narrow, x, y), (x, y)


def _backward(spec: str, narrow: Any, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    x, y = operands
    to_x = _narrow_product(f"{out},{right}->{left}", narrow, cotangent, y)
    to_y = _narrow_product(f"{left},{out}->{right}", narrow, x, cotangent)
    return to_x.astype(x.dtype), to_y.astype(y.dtype)


_narrow_product.defvjp(_forward, _backward)
