"""The optimiser: AdamW with clipping, and its learning rate as a function of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from t2l_jax.errors import UserError

Schedule = Callable[[ArrayLike], Float[Array, "..."]]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping by global norm, warm-up, and decay to zero (paper, appendix on training details)."""

    learning_rate: float = 2.5e-5
    weight_decay: float = 1e-2
    clip: float = 1.0
    warmup: float = 0.2  # share of the steps
    decay: Literal["linear", "cosine"] = "linear"
    cooldown: int = 0  # the run's last steps, over which the rate also falls linearly to zero: for runs that end early

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise UserError(f"optimizer.{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "cooldown"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"optimizer.warmup is a share of the steps, from 0 to 1, got {self.warmup}")


def make_schedule(config: OptimizerConfig, steps: int, last: int | None = None) -> Schedule:
    """Steps done (a number or an array) -> learning rate, for a schedule of `steps` that ends after `last` of them."""
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
    """The optimiser of a run whose schedule takes `steps` steps and which ends after `last` (default: all) of them.

    Equal arguments give the same object, by which the compiled step is cached.
    """
    schedule = make_schedule(config, steps, last)
    chain = optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule, weight_decay=config.weight_decay))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of its integer count
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
