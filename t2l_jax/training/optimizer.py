"""The optimiser: AdamW with gradient clipping, and its learning-rate schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from t2l_jax.schema import Index, NonNegative, Positive, Share, check_fields

Schedule = Callable[[ArrayLike], Float[Array, "..."]]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with gradient clipping, warm-up and decay to zero (paper, appendix on training details)."""

    learning_rate: Positive = 2.5e-5
    """Peak learning rate."""
    weight_decay: NonNegative = 1e-2
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Maximum global norm of the gradient."""
    warmup: Share = 0.2
    """Share of the steps over which the learning rate rises linearly."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the decay to zero after warm-up."""
    cooldown: Index = 0
    """Last steps of the run over which the rate also falls linearly to zero, for runs that stop early."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")


def make_schedule(config: OptimizerConfig, steps: int, last: int | None = None) -> Schedule:
    """Step (a number or an array) -> learning rate, for a schedule of `steps` steps in a run that ends after `last`."""
    warmup = max(1, round(config.warmup * steps))
    rest = max(1, steps - warmup)
    decay = (
        optax.linear_schedule(config.learning_rate, 0.0, rest)
        if config.decay == "linear"
        else optax.cosine_decay_schedule(config.learning_rate, rest)
    )
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, warmup)
    whole = optax.join_schedules([rise, decay], [warmup])
    end = steps if last is None else last

    def schedule(step: ArrayLike) -> Float[Array, "..."]:
        step = jnp.asarray(step)
        cool = jnp.clip((end - step) / config.cooldown, 0, 1) if config.cooldown else 1.0
        with jax.numpy_dtype_promotion("standard"):  # optax divides the integer step
            return jnp.asarray(whole(step) * cool)

    return schedule


@cache
def make_optimizer(config: OptimizerConfig, steps: int, last: int | None = None) -> optax.GradientTransformation:
    """The optimiser of a run with a schedule of `steps` steps that ends after `last` of them (default: all).

    Equal arguments return the same object, which is part of the cache key of the compiled step.
    """
    schedule = make_schedule(config, steps, last)
    chain = optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule, weight_decay=config.weight_decay))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
