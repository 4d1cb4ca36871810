"""The linear map of every projection: a frozen kernel, and a LoRA on top of it.

Axes: B any batch axes, sequence included, i input width, o output width, r rank, T the first batch axes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from t2l_jax.decoder.precision import rounded_einsum
from t2l_jax.decoder.quantized import Int8Kernel, Nf4Kernel, product
from t2l_jax.lora import lora_delta
from t2l_jax.sharding import constrain, kernel_axes

# Names by which rematerialisation chooses: what projections return, and kernels that were gathered.
PROJECTION, GATHERED = "projection", "gathered"


class LoraDense(nn.Module):
    """x W (+ bias) + scale * (dropped aᵀ) bᵀ, where `dropped` is x after LoRA dropout.

    Everything is computed in the type of x. No other code multiplies with a projection's kernel, which is an array, or
    one in 8 or 4 bits (see `quantized`).
    """

    width: int  # of the output
    lora_scale: float
    use_bias: bool = False
    matmul_dtype: DTypeLike | None = None
    mesh: Mesh | None = None  # its devices gather the kernel's stored parts, and keep heads and MLP divided

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B i"],
        dropped: Float[Array, "*B i"],
        lora: Mapping[str, Float[Array, "..."]] | None,  # a: [*T, r, i], b: [*T, o, r]
    ) -> Float[Array, "*B o"]:
        inputs, outputs = kernel_axes(self.name or "")
        kernel: Any = self.get_variable("params", "kernel")
        if isinstance(kernel, Int8Kernel | Nf4Kernel):  # flax would compare it with what an initialiser returns
            kernel = checkpoint_name(kernel.constrained(self.mesh, inputs, outputs), GATHERED)
            out = product(x, kernel, self.matmul_dtype)
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.width))
            kernel = checkpoint_name(constrain(self.mesh, kernel, inputs, outputs), GATHERED)
            out = rounded_einsum("...i,io->...o", x, kernel.astype(x.dtype), self.matmul_dtype, x.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,)).astype(x.dtype)
            out = out + jnp.broadcast_to(bias, out.shape)
        if lora is not None:
            out = out + self.lora_scale * lora_delta(dropped, lora["a"].astype(x.dtype), lora["b"].astype(x.dtype))
        return checkpoint_name(constrain(self.mesh, out, "task", ..., outputs), PROJECTION)
