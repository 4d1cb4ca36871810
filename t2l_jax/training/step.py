"""One training step and one validation, as jitted pure functions.

Axes: T tasks of a batch.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from t2l_jax.decoder import Decoder
from t2l_jax.sharding import batch_sharding, replicated
from t2l_jax.training.objectives.sft import Batch, SftConfig, sft_loss
from t2l_jax.training.producers import Producer

Metrics = dict[str, Any]


@struct.dataclass
class TrainState:
    """What a checkpoint holds: the step, what is trained, the optimiser. Never the base LLM."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


def make_step(
    producer: Producer,
    decoder: Decoder,
    sft: SftConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Any, Any, Batch], tuple[TrainState, Metrics]]:
    """The jitted step (state, constants, base, batch) -> (state, metrics). The state is donated: use the new one.

    The batch is computed in `accumulate` parts of T / accumulate tasks, one after the other; the gradient is the whole
    batch's. With a mesh, tasks are spread over its devices and every device ends with the whole new state. Metrics
    are those of `sft_loss`; `loss` is what is minimised, `producer_loss` the producer's own part of it.
    """

    def step(state: TrainState, constants: Any, base: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def gradient(part: Batch, key: Array) -> tuple[Any, Metrics]:
            make_key, loss_key = jax.random.split(key)

            def objective(params: Any) -> tuple[Array, Metrics]:
                adapter, own = producer.adapters({"params": params, **constants}, part.z, part.task_ids, make_key)
                loss, metrics = sft_loss(decoder, base, adapter, part, sft, loss_key, mesh)
                return loss + own, {**metrics, "loss": loss + own, "producer_loss": own}

            return jax.grad(objective, has_aux=True)(state.params)

        if accumulate == 1:
            grads, metrics = gradient(batch, key)
        else:
            grads, metrics = _mean(gradient, _parts(batch, accumulate, mesh), key, accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0, out_shardings=None if mesh is None else replicated(mesh))


def _parts(batch: Batch, count: int, mesh: Mesh | None) -> Batch:
    """The batch with a leading axis of `count` parts, tasks dealt out in turn so that none changes its device.

    A part's weights sum to about 1, as a batch's do: the mean over the parts is then the whole batch's loss.
    """

    def deal(leaf: Array) -> Array:
        parts = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None:
            return parts
        return jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, leading=1))

    return jax.tree.map(deal, replace(batch, weights=batch.weights * count))


def _mean(gradient: Callable[[Batch, Array], Any], parts: Batch, key: Array, count: int) -> Any:
    """The mean over the parts of what `gradient` returns, one part at a time in memory."""

    def body(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        batch, index = part
        return jax.tree.map(jnp.add, total, gradient(batch, jax.random.fold_in(key, index))), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, first, key))
    total, _ = jax.lax.scan(body, zeros, (parts, jnp.arange(count)))
    return jax.tree.map(lambda leaf: leaf / count, total)


def make_validation(
    producer: Producer, decoder: Decoder, sft: SftConfig, mesh: Mesh | None = None
) -> Callable[..., Metrics]:
    """The jitted (params, constants, base, batch) -> metrics, without dropout, noise or smoothing."""

    def validate(params: Any, constants: Any, base: Any, batch: Batch) -> Metrics:
        adapter, own = producer.adapters({"params": params, **constants}, batch.z, batch.task_ids)
        loss, metrics = sft_loss(decoder, base, adapter, batch, sft, None, mesh)
        return {**metrics, "loss": loss + own, "producer_loss": own}

    return jax.jit(validate)
