"""Matrix products whose operands are rounded to a narrower type while sums keep the wider one, backwards too.

This is what a TPU does with float32 by default. Other processors must be asked: a CPU with bfloat16 units then
multiplies twice as fast. The gradient is spelled out because JAX's own would multiply a float32 cotangent with a
bfloat16 operand, which XLA converts to float32: the backward pass of a bfloat16 model would run in float32.

Such products have no forward-mode derivative (jax.jvp), and each axis of an operand stands in the other one or in the
result.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def rounded_einsum(
    spec: str,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    matmul_dtype: DTypeLike | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "..."]:
    """jnp.einsum(spec, x, y) as `dtype`, summed in float32.

    Operands and cotangents are rounded to `matmul_dtype` first. Two bfloat16 operands are multiplied in
    bfloat16 in any case. Gradients have the types of their operands.
    """
    if matmul_dtype is None and x.dtype == y.dtype == jnp.bfloat16:
        matmul_dtype = jnp.bfloat16
    if matmul_dtype is None or x.dtype == y.dtype == matmul_dtype == dtype:  # JAX's own gradient rounds alike
        return jnp.einsum(spec, x, y, preferred_element_type=dtype)
    return _rounded(spec, jnp.dtype(matmul_dtype), jnp.dtype(dtype), x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _rounded(spec: str, matmul_dtype: Any, dtype: Any, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x.astype(matmul_dtype), y.astype(matmul_dtype), preferred_element_type=dtype)


def _forward(spec: str, matmul_dtype: Any, dtype: Any, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(spec, matmul_dtype, dtype, x, y), (x, y)


def _backward(
    spec: str, matmul_dtype: Any, _: Any, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    x, y = operands
    to_x = _rounded(f"{out},{right}->{left}", matmul_dtype, x.dtype, cotangent, y)
    to_y = _rounded(f"{left},{out}->{right}", matmul_dtype, y.dtype, x, cotangent)
    return to_x, to_y


_rounded.defvjp(_forward, _backward)
