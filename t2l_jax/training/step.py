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

from t2l_jax.sharding import batch_sharding, replicated, trained_sharding
from t2l_jax.training.objectives import Objective
from t2l_jax.training.trainees import Trainee

Metrics = dict[str, Any]
CACHED = 16  # compiled functions kept for later runs in this process


@struct.dataclass
class TrainState:
    """The contents of a checkpoint: step, trained parameters and optimiser state, but no frozen weights."""

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

    The gradient of the batch is accumulated over `accumulate` sequential parts of T / accumulate tasks. With a mesh,
    tasks are sharded over its devices, and the new state as `trained_sharding` says. The metrics are the objective's,
    `loss` (what is minimised), `trainee_loss` (the trainee's own part of it) and `grad_norm`. Equal arguments return
    the same function, so a second run in this process does not compile again.
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
        new, metrics = TrainState(state.step + 1, params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}
        if mesh is not None:
            new = jax.lax.with_sharding_constraint(new, trained_sharding(mesh, new))
            metrics = jax.lax.with_sharding_constraint(metrics, replicated(mesh))
        return new, metrics

    return jax.jit(step, donate_argnums=0)


def _parts(batch: Any, count: int, mesh: Mesh | None) -> Any:
    """Split the batch into a leading axis of `count` parts, interleaving tasks so that none changes its device."""

    def deal(leaf: Array) -> Array:
        parts = leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh is None:
            return parts
        return jax.lax.with_sharding_constraint(parts, batch_sharding(mesh, leading=1))

    return jax.tree.map(deal, batch)


def _mean(gradient: Callable[[Any, Array], Any], parts: Any, key: Array, count: int) -> Any:
    """The mean of `gradient` over the parts, computed one part at a time."""

    def body(total: Any, part: tuple[Any, Array]) -> tuple[Any, None]:
        batch, index = part
        return jax.tree.map(jnp.add, total, gradient(batch, jax.random.fold_in(key, index))), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, first, key))
    total, _ = jax.lax.scan(body, zeros, (parts, jnp.arange(count)))
    return jax.tree.map(lambda leaf: leaf / count, total)


@lru_cache(CACHED)
def make_validation(trainee: Trainee) -> Callable[[Any, Any, Objective, Any], Metrics]:
    """The jitted, deterministic (params, constants, objective, batch) -> metrics."""

    def validate(params: Any, constants: Any, objective: Objective, batch: Any) -> Metrics:
        adapter, own = trainee.adapters({"params": params, **constants}, batch.condition)
        loss, metrics = objective.loss(adapter, batch, None)
        return {**metrics, "loss": loss + own, "trainee_loss": own}

    return jax.jit(validate)
