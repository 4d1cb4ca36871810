"""Losses of reconstruction: the distance of generated adapters from those of a library.

Axes: T tasks, L layers, r rank, i input width, o output width.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from t2l_jax.hypernet import STD_EPSILON, Condition
from t2l_jax.lora import Adapter
from t2l_jax.schema import check_fields
from t2l_jax.sharding import put, replicated
from t2l_jax.training.objectives.base import Objective

DELTA_FACTOR = 1e4  # of the L1 distance of deltas, the original's


@dataclass(frozen=True)
class ReconstructionConfig:
    """What is compared with the library's adapters."""

    loss: Literal["factors", "canonical", "delta", "gram"] = "gram"
    """factors: L1 on the z-scores of A and B, as in the paper; canonical: the same after each target's factors are
    replaced by those of its singular value decomposition; delta: L1 on B A, as in the paper; gram: relative squared
    error of B A, computed from r x r products."""

    def __post_init__(self) -> None:
        check_fields(self, "objective")

    @property
    def canonical(self) -> bool:
        return self.loss == "canonical"

    @property
    def scores(self) -> bool:
        """Whether the loss compares z-scores."""
        return self.loss in ("factors", "canonical")


@struct.dataclass
class TargetBatch:
    """Conditions of T tasks, and the adapters that they should give."""

    condition: Condition
    target: Adapter


def factor_loss(adapter: Adapter, target: Adapter, std: Adapter) -> Float[Array, ""]:
    """Mean |(A - A') / s| + mean |(B - B') / s|, averaged over modules; s is each weight's deviation plus 1e-10.

    With the library's mean m, (A' - m) / s is the target's z-score: the L1 loss of the paper's section 3.2 on z-scored
    factors (appendix on training details).
    """

    def distance(own: Array, wanted: Array, deviation: Array) -> Array:
        return jnp.mean(jnp.abs((own - wanted) / (deviation + STD_EPSILON)[None]))

    distances = jax.tree.map(distance, adapter.weights, target.weights, std.weights)
    return sum(jax.tree.leaves(distances), start=jnp.zeros((), jnp.float32)) / len(distances)


def delta_loss(adapter: Adapter, target: Adapter) -> Float[Array, ""]:
    """1e4 times mean |B A - B' A'|, averaged over modules: the paper's L1 loss on delta W, without LoRA's scale.

    One layer of one module is formed at a time, and formed again for its gradient, so that memory does not grow with
    their number.
    """

    @jax.checkpoint
    def of_layer(total: Array, pairs: tuple[dict[str, Array], dict[str, Array]]) -> tuple[Array, None]:
        own, wanted = (jnp.einsum("tor,tri->toi", pair["b"], pair["a"]) for pair in pairs)
        return total + jnp.mean(jnp.abs(own - wanted)), None

    total = jnp.zeros((), jnp.float32)
    for name, pair in adapter.weights.items():
        layers = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (pair, target.weights[name]))
        sums, _ = jax.lax.scan(of_layer, jnp.zeros((), jnp.float32), layers)
        total += sums / layers[0]["a"].shape[0]
    return DELTA_FACTOR * total / len(adapter.weights)


def squared_errors(adapter: Adapter, target: Adapter) -> tuple[Float[Array, "*T"], Float[Array, "*T"]]:
    """||B A - B' A'||² and ||B' A'||² of each adapter, summed over modules and layers.

    <B A, B' A'> = sum of (Bᵀ B') * (A A'ᵀ), so that only r x r matrices are formed, never o x i. Scale apart.
    """

    def inner(one: dict[str, Array], other: dict[str, Array]) -> Float[Array, "*T"]:
        # In full precision: the difference of such products is small beside them.
        left = jnp.einsum("...or,...os->...rs", one["b"], other["b"], precision="highest")
        right = jnp.einsum("...ri,...si->...rs", one["a"], other["a"], precision="highest")
        return jnp.sum(left * right, axis=(-3, -2, -1))

    error, norm = [], []
    for name, own in adapter.weights.items():
        wanted = target.weights[name]
        size = inner(wanted, wanted)
        error.append(inner(own, own) - 2 * inner(own, wanted) + size)
        norm.append(size)
    return jnp.maximum(sum(error), 0), sum(norm, start=jnp.zeros((), jnp.float32))


@struct.dataclass
class Reconstruction(Objective):
    """The distance of generated adapters from the library's (paper, section 3.2).

    `relative_error`, the metric of all four losses, is ||B A - B' A'|| / ||B' A'|| over a task's modules and layers,
    averaged over tasks.
    """

    std: Adapter | None  # of each weight over the library; None if the loss compares no z-scores
    config: ReconstructionConfig = struct.field(pytree_node=False, default=ReconstructionConfig())

    metrics: ClassVar[tuple[str, ...]] = ("relative_error",)
    best: ClassVar[str] = "relative_error"

    def place(self, mesh: Mesh) -> "Reconstruction":
        return replace(self, std=put(self.std, replicated(mesh)))

    def counts(self, batch: TargetBatch) -> dict[str, int]:
        return {"adapters": len(batch.target)}

    def loss(
        self, adapter: Adapter, batch: TargetBatch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The configured loss, and the relative error of the deltas."""
        error, norm = squared_errors(adapter, batch.target)
        relative = error / norm
        if self.std is not None:
            loss = factor_loss(adapter, batch.target, self.std)
        else:
            loss = delta_loss(adapter, batch.target) if self.config.loss == "delta" else jnp.mean(relative)
        root = jnp.sqrt(jax.lax.stop_gradient(relative))
        return loss, {"relative_error": jnp.mean(root)}
