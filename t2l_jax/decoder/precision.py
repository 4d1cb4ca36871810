"""Matrix products whose operands are rounded to a narrower type while sums keep the wider one, backwards too.

What a TPU does to float32 by default, for processors that must be asked: a CPU with bfloat16 units multiplies twice as
fast. The gradient is spelled out because JAX's own would multiply a wide cotangent with a narrow operand, which XLA
widens again: a model in bfloat16 would go back in float32.

Such products have no forward-mode derivative (jax.jvp), and each axis of an operand stands in the other one or in the
result.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def product(
    spec: str,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    narrow: DTypeLike | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """jnp.einsum(spec, x, y) as `dtype`, summed in float32; operands and cotangents are rounded to `narrow` before.

    Operands that are bfloat16 both are narrow already. Gradients have the types of their operands.
    """
    if narrow is None and x.dtype == y.dtype == jnp.bfloat16:
        narrow = jnp.bfloat16
    if narrow is None or x.dtype == y.dtype == narrow == dtype:  # then JAX's own gradient is as narrow
        return jnp.einsum(spec, x, y, preferred_element_type=dtype)
    return _narrow_product(spec, jnp.dtype(narrow), jnp.dtype(dtype), x, y)


def dense_product(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], *_: Any, narrow: DTypeLike | None, **__: Any
) -> Float[Array, "... o"]:
    """`product` of a dense layer, in the type of x: what nn.Dense takes as its `dot_general`."""
    return product("...i,io->...o", x, kernel, narrow, x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _narrow_product(spec: str, narrow: Any, dtype: Any, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x.astype(narrow), y.astype(narrow), preferred_element_type=dtype)


def _forward(spec: str, narrow: Any, dtype: Any, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_product(spec, narrow, dtype, x, y), (x, y)


def _backward(spec: str, narrow: Any, _: Any, operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    x, y = operands
    to_x = _narrow_product(f"{out},{right}->{left}", narrow, x.dtype, cotangent, y)
    to_y = _narrow_product(f"{left},{out}->{right}", narrow, y.dtype, x, cotangent)
    return to_x, to_y


_narrow_product.defvjp(_forward, _backward)
