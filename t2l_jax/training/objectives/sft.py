"""Losses of supervised fine-tuning (SFT) through a generated adapter.

Axes: T tasks, R rows of a task, S sequence, D model width, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t2l_jax.decoder import SHARED, Decoder
from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter
from t2l_jax.training.answer_loss import Scoring, answer_loss


@dataclass(frozen=True)
class SftConfig:
    """Regularisation of SFT (paper, appendix on training details)."""

    label_smoothing: float = 0.1
    weight_l2: float = 1e-3  # on the generated A and B
    neftune: float = 5.0  # noise on the input embeddings (NEFTune, arXiv 2310.05914)
    lora_dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"sft.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("weight_l2", "neftune"):
            if getattr(self, name) < 0:
                raise UserError(f"sft.{name} must be at least 0, got {getattr(self, name)}")


@struct.dataclass
class Batch:
    """Rows of T tasks, R rows each, of several examples each, and where in them the answers are.

    `segments` is 1 on what all examples of a row begin with, numbers them 2, 3, ... and is 0 on padding; `positions`
    count from 0 in every example, what it shares included.
    `targets[t, r, s]` is the token that the hidden state of place s of the row is to predict; `weights` sum to 1 over
    the batch, equal for every task and for every example of a task, 0 where there is no target.
    """

    z: Float[Array, "T z"]
    task_ids: Int[Array, " T"]
    tokens: Int[Array, "T R S"]
    segments: Int[Array, "T R S"]
    positions: Int[Array, "T R S"]
    targets: Int[Array, "T R S"]
    weights: Float[Array, "T R S"]


ROW_FIELDS = ("tokens", "segments", "positions", "targets", "weights")


def segment_sums(values: Float[Array, "*b n"], segments: Int[Array, "*b n"]) -> Float[Array, "*b n"]:
    """For each element, the sum over its row's elements of the same segment; of n elements none is above n + 1."""
    width = values.shape[-1]

    def of_row(values: Array, segments: Array) -> Array:
        return jax.ops.segment_sum(values, segments, width + 2)[segments]

    return jnp.vectorize(of_row, signature="(n),(n)->(n)")(values, segments)


def neftune_noise(
    key: PRNGKeyArray, segments: Int[Array, "*b S"], width: int, strength: float
) -> Float[Array, "*b S D"]:
    """Uniform noise of magnitude strength / sqrt(length * D), length counting an example's tokens; 0 on padding.

    What the examples of a row share has the noise of the longest, for all of them the same.
    """
    real = (segments > 0).astype(jnp.float32)
    shared = real * (segments == SHARED)
    own = segment_sums(real - shared, segments)
    length = jnp.sum(shared, axis=-1, keepdims=True) + jnp.where(shared > 0, jnp.max(own, -1, keepdims=True), own)
    bound = strength * real / jnp.sqrt(jnp.maximum(length, 1) * width)
    return bound[..., None] * jax.random.uniform(key, (*segments.shape, width), jnp.float32, -1, 1)


def weight_penalty(adapter: Adapter) -> Float[Array, ""]:
    """mean A² + mean B², summed over modules."""
    return sum((jnp.mean(leaf**2) for leaf in jax.tree.leaves(adapter)), start=jnp.zeros(()))


def sft_loss(
    decoder: Decoder,
    base: dict[str, Any],
    adapter: Adapter,
    batch: Batch,
    config: SftConfig,
    key: PRNGKeyArray | None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of the base model adapted per task, and its parts. Without a key nothing is random: no noise, no dropout.

    `exact` is the share of examples, a mean over tasks, all of whose answer tokens are the likeliest, each given the
    right ones before it.
    Scores are computed at the supervised positions alone, some at a time. With a mesh, tasks are spread over it.
    """
    train = key is not None
    if batch.tokens.shape[1] == 1:  # XLA's CPU reductions are ten times slower where an axis has length one
        batch = replace(batch, **{name: getattr(batch, name)[:, 0] for name in ROW_FIELDS})
    decoder = decoder.clone(train=train, lora_dropout=config.lora_dropout if train else 0.0)
    noise, rngs = None, {}
    if key is not None:
        noise_key, dropout_key = jax.random.split(key)
        rngs = {"dropout": dropout_key}
        if config.neftune:
            noise = neftune_noise(noise_key, batch.segments, decoder.config.width, config.neftune)
    hidden, _ = decoder.apply(
        {"params": base},
        batch.tokens,
        adapter,
        segments=batch.segments,
        positions=batch.positions,
        embed_noise=noise,
        rngs=rngs,
    )
    scoring = Scoring(decoder.config, decoder.matmul_dtype, config.label_smoothing if train else 0.0)
    entropy, missed = answer_loss(scoring, base, hidden, batch.targets, batch.weights, mesh)
    exact = jnp.sum(batch.weights * (segment_sums(missed.astype(jnp.float32), batch.segments) == 0))
    penalty = weight_penalty(adapter)
    loss = entropy + config.weight_l2 * penalty
    return loss, {"loss": loss, "cross_entropy": entropy, "exact": exact, "weight_penalty": penalty}
