"""LoRA as pure functions: the shape of an adapter, its algebra, and its effect on a projection.

Axes: T tasks or rows (any leading batch axes), L layers, r rank, i input width, o output width.

Source: Hu et al., arXiv 2106.09685; rsLoRA: Kalajdzievski, arXiv 2312.03732. Orientation of A and B is PEFT's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from t2l_jax.errors import UserError
from t2l_jax.schema import Count, Positive

MAX_ALPHA = 1e30  # B times the scale is float32


class Projection(NamedTuple):
    """A linear map of a decoder layer that can carry LoRA.

    `axes` are the logical axes of its kernel, input then output: a DecoderConfig knows their sizes, `sharding.RULES`
    where they lie on the mesh. `gguf` is its name in llama.cpp's files.
    """

    name: str
    block: Literal["self_attn", "mlp"]
    axes: tuple[str, str]
    gguf: str


# All of them, in the order in which every spec lists them.
PROJECTIONS = {
    projection.name: projection
    for projection in (
        Projection("q_proj", "self_attn", ("width", "heads"), "attn_q"),
        Projection("k_proj", "self_attn", ("width", "kv_heads"), "attn_k"),
        Projection("v_proj", "self_attn", ("width", "kv_heads"), "attn_v"),
        Projection("o_proj", "self_attn", ("heads", "width"), "attn_output"),
        Projection("gate_proj", "mlp", ("width", "mlp"), "ffn_gate"),
        Projection("up_proj", "mlp", ("width", "mlp"), "ffn_up"),
        Projection("down_proj", "mlp", ("mlp", "width"), "ffn_down"),
    )
}


@dataclass(frozen=True)
class LoraModule:
    """One adapted projection: its name in PROJECTIONS and the widths of its input and output."""

    name: str
    d_in: Count
    d_out: Count


@dataclass(frozen=True)
class LoraSpec:
    """The shape and scale of an adapter: which projections, how many layers, rank, alpha, rsLoRA or not.

    `modules` is sorted in the order of PROJECTIONS, so that equal sets give equal specs.
    """

    modules: tuple[LoraModule, ...]
    num_layers: Count
    rank: Count = 8
    alpha: Positive = 16.0
    rslora: bool = True

    def __post_init__(self) -> None:
        names = [module.name for module in self.modules]
        for name in names:
            if name not in PROJECTIONS:
                raise UserError(f"LoRA cannot target {name!r}: choose among {', '.join(PROJECTIONS)}")
        if len(set(names)) != len(names) or not names:
            raise UserError(f"LoRA needs each target module once and at least one, got {names}")
        if self.rank < 1 or self.num_layers < 1 or not 0 < self.alpha <= MAX_ALPHA:
            raise UserError(
                f"LoRA needs rank, layers and alpha above zero, and alpha at most {MAX_ALPHA:g}: "
                f"got {self.rank}, {self.num_layers}, {self.alpha}"
            )
        order = list(PROJECTIONS)
        ordered = tuple(sorted(self.modules, key=lambda module: order.index(module.name)))
        object.__setattr__(self, "modules", ordered)

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(module.name for module in self.modules)

    @property
    def size(self) -> int:
        """The number of weights in one adapter."""
        return self.num_layers * self.rank * sum(module.d_in + module.d_out for module in self.modules)

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Module name -> shapes of `a` and `b` of one adapter."""
        layers, rank = self.num_layers, self.rank
        return {m.name: {"a": (layers, rank, m.d_in), "b": (layers, m.d_out, rank)} for m in self.modules}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a config file."""
        return {
            "modules": {m.name: [m.d_in, m.d_out] for m in self.modules},
            "num_layers": self.num_layers,
            "rank": self.rank,
            "alpha": self.alpha,
            "rslora": self.rslora,
        }


@struct.dataclass
class Adapter:
    """One adapter, or many: a pytree of `a` [*batch, L, r, i] and `b` [*batch, L, o, r] per module.

    `spec` is static data, so the scale is never lost, and `jax.tree.map` adds, averages or scales only the weights.
    Leading batch axes mean "many adapters".
    """

    weights: dict[str, dict[str, Float[Array, "..."]]]
    spec: LoraSpec = struct.field(pytree_node=False)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.weights[self.spec.names[0]]["a"].shape[:-3]

    def __len__(self) -> int:
        if not self.batch_shape:
            raise TypeError("a single adapter has no length: its leading axis is the layer, not a batch")
        return self.batch_shape[0]

    def __getitem__(self, index: Any) -> "Adapter":
        """Index or slice the leading batch axis."""
        if not self.batch_shape:
            raise IndexError("a single adapter cannot be indexed: it has no batch axis")
        if isinstance(index, int) and not -len(self) <= index < len(self):  # JAX would clamp it, and loops never end
            raise IndexError(f"adapter {index} of a batch of {len(self)}")
        return jax.tree.map(lambda leaf: leaf[index], self)


def init_adapter(key: PRNGKeyArray, spec: LoraSpec, dtype: Any = jnp.float32) -> Adapter:
    """The usual initialisation of LoRA: A ~ U(±1/sqrt(i)), B = 0, hence a delta of exactly zero."""
    keys = jax.random.split(key, len(spec.modules))
    shapes = spec.shapes()
    weights = {}
    for module_key, module in zip(keys, spec.modules, strict=True):
        bound = 1 / math.sqrt(module.d_in)
        shape = shapes[module.name]
        weights[module.name] = {
            "a": jax.random.uniform(module_key, shape["a"], dtype, -bound, bound),
            "b": jnp.zeros(shape["b"], dtype),
        }
    return Adapter(weights, spec)


def lora_delta(
    x: Float[Array, "*batch i"], a: Float[Array, "*adapters r i"], b: Float[Array, "*adapters o r"]
) -> Float[Array, "*batch o"]:
    """(x aᵀ) bᵀ, unscaled. Batch axes of a and b are the first ones of x: one matmul per task, no copies per row."""
    if a.ndim > 2:
        return jax.vmap(lora_delta)(x, a, b)
    return (x @ a.T) @ b.T


def dense_delta(adapter: Adapter) -> dict[str, Float[Array, "*batch L i o"]]:
    """The adapter's delta to each projection's kernel [L, i, o], scale included."""
    return {
        name: adapter.spec.scale * jnp.einsum("...ri,...or->...io", w["a"], w["b"])
        for name, w in adapter.weights.items()
    }


def delta_norms(adapter: Adapter) -> dict[str, Float[Array, "*batch L"]]:
    """The Frobenius norm of the adapter's delta to each projection of each layer, scale included.

    Of B A it is the root of tr((BᵀB)(A Aᵀ)): r x r numbers instead of i x o.
    """
    norms = {}
    for name, w in adapter.weights.items():
        # Of factors whose largest number is one, so that no square is too large or too small.
        (a, largest_a), (b, largest_b) = (_largest_one(w[side].astype(jnp.float32)) for side in ("a", "b"))
        squared = jnp.einsum("...ri,...si,...or,...os->...", a, a, b, b, optimize="optimal")
        norms[name] = adapter.spec.scale * largest_a * largest_b * jnp.sqrt(jnp.maximum(squared, 0))
    return norms


def _largest_one(factor: Float[Array, "*batch m n"]) -> tuple[Float[Array, "*batch m n"], Float[Array, "*batch"]]:
    """The factor divided by its largest number, and that number."""
    largest = jnp.maximum(jnp.abs(factor).max((-2, -1)), jnp.finfo(jnp.float32).tiny)
    return factor / largest[..., None, None], largest


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """Adapters of one spec as one Adapter with a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def merge(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Decoder parameters with one adapter's delta added to the kernels: a specialised model that needs no adapter."""
    if adapter.batch_shape:
        raise UserError(f"only one adapter can be merged, got a batch of shape {adapter.batch_shape}: index it first")
    return add_deltas(params, dense_delta(adapter))


def add_deltas(params: dict[str, Any], deltas: Mapping[str, Float[Array | np.ndarray, "L i o"]]) -> dict[str, Any]:
    """Decoder parameters with a change added to the kernels of some projections."""
    layers = dict(params["layers"])
    for name, delta in deltas.items():
        kernel = layers[name]["kernel"]
        if not hasattr(kernel, "astype"):
            raise UserError("an adapter cannot be merged into kernels of 8 or 4 bits: load the base LLM as native")
        layers[name] = {**layers[name], "kernel": (kernel.astype(delta.dtype) + delta).astype(kernel.dtype)}
    return {**params, "layers": layers}
