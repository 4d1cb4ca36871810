"""Chunked cross-entropy of answers: the logits of all supervised positions never exist at once.

Few positions of a batch are supervised, and their number varies widely between rows. So the supervised positions of all
rows are gathered and scored CHUNK at a time; a chunk's gradient with respect to the hidden states is computed right
after its loss, while its logits [CHUNK, V] are available. (The same trade-off as in the fused linear cross-entropy of
Liger Kernel, arXiv 2410.10989.)

Axes: T tasks, *R rows, S sequence, D model width, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.decoder import DecoderConfig, logits
from t2l_jax.sharding import RULES, partition, parts

CHUNK = 128  # positions


class Scoring(NamedTuple):
    """How logits are computed from hidden states and compared with targets."""

    config: DecoderConfig
    matmul_dtype: DTypeLike | None = None
    smoothing: float = 0.0


def cross_entropy(
    scores: Float[Array, "*b V"], targets: Int[Array, "*b"], weights: Float[Array, "*b"], smoothing: float
) -> Float[Array, ""]:
    """Weighted sum of the cross-entropy in nats against targets smoothed towards the uniform distribution."""
    target = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    wanted = (1 - smoothing) * target + smoothing * jnp.mean(scores, axis=-1)
    return jnp.sum(weights * (jax.nn.logsumexp(scores, axis=-1) - wanted))


def answer_loss(
    scoring: Scoring,
    params: dict[str, Any],
    hidden: Float[Array, "T *R S D"],
    targets: Int[Array, "T *R S"],
    weights: Float[Array, "T *R S"],
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], Bool[Array, "T *R S"]]:
    """The weighted cross-entropy of the targets, and a mask of positions whose likeliest token is not the target.

    Positions with weight 0 are not supervised, and False in the mask. Only `hidden` has a gradient: the decoder's
    `params` are frozen. With a mesh every device scores its own tasks, or all tasks if the devices do not divide them.
    """
    if mesh is None or len(hidden) % parts(mesh, "task"):
        return _answer_loss(scoring, params, hidden, targets, weights)

    def of_device(*args: Any) -> tuple[Array, Array]:
        entropy, missed = _answer_loss(scoring, *args)
        return entropy[None], missed

    task = partition("task")
    spread = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), *(task,) * 3),
        out_specs=(task, task),
        axis_names=set(RULES["task"]),  # where the vocabulary lies stays as it is
        check_vma=False,
    )
    head = {name: params[name] for name in ("embedding", "head") if name in params}
    entropy, missed = spread(head, hidden, targets, weights)
    return jnp.sum(entropy), missed


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _answer_loss(
    scoring: Scoring, params: dict[str, Any], hidden: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
    entropy, missed, _ = _by_chunk(scoring, params, hidden, targets, weights, with_gradient=False)
    return entropy, missed


def _forward(scoring: Scoring, *args: Any) -> tuple[tuple[Array, Array], Array]:
    entropy, missed, gradient = _by_chunk(scoring, *args, with_gradient=True)
    return (entropy, missed), gradient


def _backward(scoring: Scoring, gradient: Array, cotangents: tuple[Array, Any]) -> tuple[Any, ...]:
    slope = cotangents[0] * gradient.astype(cotangents[0].dtype)
    return None, slope.astype(gradient.dtype), None, None


_answer_loss.defvjp(_forward, _backward)


def _by_chunk(
    scoring: Scoring,
    params: dict[str, Any],
    hidden: Array,
    targets: Array,
    weights: Array,
    *,
    with_gradient: bool,
) -> tuple[Array, Array, Array]:
    """Loss, misses, and the loss's gradient with respect to `hidden` (empty where it is not asked for)."""
    states = hidden.reshape(-1, hidden.shape[-1])
    # The last CHUNK entries weigh nothing: they fill the last chunk up.
    wanted, flat_weights = (jnp.pad(leaf.reshape(-1), (0, CHUNK)) for leaf in (targets, weights))
    supervised = flat_weights != 0  # of a NaN too: it must reach the loss
    members = jnp.flatnonzero(supervised, size=len(supervised), fill_value=len(supervised) - 1)

    def chunk(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        entropy, missed, gradient = carry
        mine = jax.lax.dynamic_slice(members, (index * CHUNK,), (CHUNK,))
        given = states.at[mine].get(mode="fill", fill_value=0)

        def loss(states: Array) -> tuple[Array, Array]:
            scores = logits(scoring.config, params, states, scoring.matmul_dtype)
            wrong = (jnp.argmax(scores, axis=-1).astype(jnp.int32) != wanted[mine]) & supervised[mine]
            return cross_entropy(scores, wanted[mine], flat_weights[mine], scoring.smoothing), wrong

        if with_gradient:
            (own, wrong), slope = jax.value_and_grad(loss, has_aux=True)(given)
            gradient = gradient.at[mine].set(slope, mode="drop")
        else:
            own, wrong = loss(given)
        return entropy + own, missed.at[mine].set(wrong), gradient

    chunks = -(-jnp.sum(supervised) // CHUNK)
    slopes = jnp.zeros_like(states if with_gradient else states[:0])
    start = jnp.zeros((), jnp.float32), jnp.zeros(len(supervised), bool), slopes
    entropy, missed, gradient = jax.lax.fori_loop(0, chunks, chunk, start)
    shape = hidden.shape if with_gradient else gradient.shape
    return entropy, missed[: weights.size].reshape(weights.shape), gradient.reshape(shape)
