"""Losses of supervised fine-tuning (SFT) through a generated adapter.

Axes: T tasks, R rows of a task, S sequence, D model width, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t2l_jax.data.batch import ROW_FIELDS, Batch
from t2l_jax.decoder import SHARED, Decoder
from t2l_jax.lora import Adapter
from t2l_jax.schema import NonNegative, Rate, check_fields
from t2l_jax.sharding import constrain_adapter, place_base
from t2l_jax.training.answer_loss import Scoring, answer_loss
from t2l_jax.training.objectives.base import FrozenBase, Objective


@dataclass(frozen=True)
class SftConfig:
    """Regularisation of SFT (paper, appendix on training details)."""

    label_smoothing: Rate = 0.1
    """Label smoothing towards the uniform distribution."""
    weight_l2: NonNegative = 1e-3
    """Weight of the L2 penalty on the generated A and B."""
    neftune: NonNegative = 5.0
    """Strength of the noise on the input embeddings (NEFTune, arXiv 2310.05914)."""
    lora_dropout: Rate = 0.05
    """Dropout on the inputs of the LoRA branch."""

    def __post_init__(self) -> None:
        check_fields(self, "objective")

    @property
    def kind(self) -> type[Objective]:
        return Sft

    def build(self, base: FrozenBase) -> "Sft":
        """Build the objective, loading the base model's weights."""
        return Sft(base.params, base.decoder, self, base.mesh)


def segment_sums(values: Float[Array, "*b n"], segments: Int[Array, "*b n"]) -> Float[Array, "*b n"]:
    """For each element, the sum over the elements of its row in the same segment. Segment ids are at most n + 1."""
    width = values.shape[-1]

    def of_row(values: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(values, segments, width + 2)[segments]

    return jnp.vectorize(of_row, signature="(n),(n)->(n)")(values, segments)


def neftune_noise(
    key: PRNGKeyArray, segments: Int[Array, "*b S"], width: int, strength: float
) -> Float[Array, "*b S D"]:
    """Uniform noise in ±strength / sqrt(length * D), with `length` the tokens of the example; 0 on padding.

    The shared prefix of a row gets one noise for all its examples, with the length of the longest of them.
    """
    real = (segments > 0).astype(jnp.float32)
    shared = real * (segments == SHARED).astype(jnp.float32)
    own = segment_sums(real - shared, segments)
    length = jnp.sum(shared, axis=-1, keepdims=True) + jnp.where(shared > 0, jnp.max(own, -1, keepdims=True), own)
    bound = strength * real / jnp.sqrt(jnp.maximum(length, 1) * width)
    return bound[..., None] * jax.random.uniform(key, (*segments.shape, width), jnp.float32, -1, 1)


def weight_penalty(adapter: Adapter) -> Float[Array, ""]:
    """mean A² + mean B², summed over modules."""
    return sum((jnp.mean(leaf**2) for leaf in jax.tree.leaves(adapter)), start=jnp.zeros((), jnp.float32))


@struct.dataclass
class Sft(Objective):
    """Cross-entropy of the answers under the frozen base model, adapted per task (paper, section 3.3)."""

    base: dict[str, Any]  # the decoder's parameters
    decoder: Decoder = struct.field(pytree_node=False)
    config: SftConfig = struct.field(pytree_node=False, default=SftConfig())
    mesh: Mesh | None = struct.field(pytree_node=False, default=None)  # over which tasks are spread

    metrics: ClassVar[tuple[str, ...]] = ("cross_entropy", "exact", "weight_penalty")
    rising: ClassVar[tuple[str, ...]] = ("exact",)
    best: ClassVar[str] = "cross_entropy"

    def place(self, mesh: Mesh) -> "Sft":
        return replace(self, base=place_base(mesh, self.base), decoder=self.decoder.clone(mesh=mesh), mesh=mesh)

    def part(self, batch: Batch, count: int) -> Batch:
        """Rescales the weights to sum to about 1, so that the mean over the parts is the batch's loss."""
        return replace(batch, weights=batch.weights * count)

    def counts(self, batch: Batch) -> dict[str, int]:
        tokens = int(np.sum(np.asarray(batch.segments) > 0))
        return {"tokens": tokens, "supervised": int(np.sum(np.asarray(batch.weights) > 0))}

    def batch_metrics(self, batch: Batch) -> dict[str, float]:
        return {"padding": 1 - self.counts(batch)["tokens"] / batch.segments.size}

    def loss(
        self, adapter: Adapter, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss and its parts. Without a key (validation): no noise, no dropout, no label smoothing.

        `exact` is the share of examples, averaged over tasks, whose answer tokens are all the likeliest under teacher
        forcing. Logits are computed at supervised positions only, in chunks.
        """
        config, train, adapter = self.config, key is not None, constrain_adapter(self.mesh, adapter)
        if batch.tokens.shape[1] == 1:  # XLA's CPU reductions are ten times slower where an axis has length one
            batch = replace(batch, **{name: getattr(batch, name)[:, 0] for name in ROW_FIELDS})
        decoder = self.decoder.clone(train=train, lora_dropout=config.lora_dropout if train else 0.0)
        noise, rngs = None, {}
        if key is not None:
            noise_key, dropout_key = jax.random.split(key)
            rngs = {"dropout": dropout_key}
            if config.neftune:
                noise = neftune_noise(noise_key, batch.segments, decoder.config.width, config.neftune)
        hidden, _ = decoder.apply(
            {"params": self.base},
            batch.tokens,
            adapter,
            segments=batch.segments,
            positions=batch.positions,
            embed_noise=noise,
            rngs=rngs,
        )
        scoring = Scoring(decoder.config, decoder.matmul_dtype, config.label_smoothing if train else 0.0)
        entropy, missed = answer_loss(scoring, self.base, hidden, batch.targets, batch.weights, self.mesh)
        right = segment_sums(missed.astype(jnp.float32), batch.segments) == 0
        exact = jnp.sum(batch.weights * right.astype(jnp.float32))
        penalty = weight_penalty(adapter)
        loss = entropy + config.weight_l2 * penalty
        return loss, {"cross_entropy": entropy, "exact": exact, "weight_penalty": penalty}
