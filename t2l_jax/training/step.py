"""One training step and one validation, as jitted pure functions.

Axes: T tasks of a batch.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from t2l_jax.sharding import batch_sharding, replicated
from t2l_jax.training.objectives import Objective
from t2l_jax.training.trainees import Trainee

Metrics = dict[str, Any]
CACHED = 16  # compiled functions that are kept for further runs in this process


@struct.dataclass
class TrainState:
    """What a checkpoint holds: the step, what is trained, the optimiser. Never what is frozen."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


@lru_cache(CACHED)
def make_step(
    trainee: Trainee,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Any, Objective, Any], tuple[TrainState, Metrics]]:
    """The jitted step (state, constants, objective, batch) -> (state, metrics). The state is donated: use the new one.

    The batch is computed in `accumulate` parts of T / accumulate tasks, one after the other; the gradient is the whole
    batch's. With a mesh, tasks are spread over its devices and every device ends with the whole new state. Metrics
    are those of the objective; `loss` is what is minimised, `trainee_loss` the trainee's own part of it. Equal
    arguments give the same function: a second run in this process does not compile again.
    """

    def step(state: TrainState, constants: Any, objective: Objective, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def gradient(part: Any, key: Array) -> tuple[Any, Metrics]:
            make_key, loss_key = jax.random.split(key)

            def total(params: Any) -> tuple[Array, Metrics]:
                adapter, own = trainee.adapters({"params": params, **constants}, part.condition, make_key)
                loss, metrics = objective.loss(adapter, part, loss_key)
                return loss + own, {**metrics, "loss": loss + own, "trainee_loss": own}

            return jax.grad(total, has_aux=True)(state.params)

        if accumulate == 1:
            grads, metrics = gradient(batch, key)
        else:
            parts = _parts(objective.part(batch, accumulate), accumulate, mesh)
            grads, metrics = _mean(gradient, parts, key, accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0, out_shardings=None if mesh is None else replicated(mesh))


def _parts(batch: Any, count: int, mesh: Mesh | None) -> Any:
    """The batch with a leading axis of `count` parts, tasks dealt out in turn so that none changes its device."""

    def deal(leaf: Array) -> Array:
        parts = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None:
            return parts
        return jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, leading=1))

    return jax.tree.map(deal, batch)


def _mean(gradient: Callable[[Any, Array], Any], parts: Any, key: Array, count: int) -> Any:
    """The mean over the parts of what `gradient` returns, one part at a time in memory."""

    def body(total: Any, part: tuple[Any, Array]) -> tuple[Any, None]:
        batch, index = part
        return jax.tree.map(jnp.add, total, gradient(batch, jax.random.fold_in(key, index))), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, first, key))
    total, _ = jax.lax.scan(body, zeros, (parts, jnp.arange(count)))
    return jax.tree.map(lambda leaf: leaf / count, total)


@lru_cache(CACHED)
def make_validation(trainee: Trainee) -> Callable[[Any, Any, Objective, Any], Metrics]:
    """The jitted (params, constants, objective, batch) -> metrics, without anything random."""

    def validate(params: Any, constants: Any, objective: Objective, batch: Any) -> Metrics:
        adapter, own = trainee.adapters({"params": params, **constants}, batch.condition)
        loss, metrics = objective.loss(adapter, batch, None)
        return {**metrics, "loss": loss + own, "trainee_loss": own}

    return jax.jit(validate)
