"""Which parameters of a run are published, and when a run that no longer improves ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from t2l_jax.errors import UserError
from t2l_jax.io.checkpoint import Checkpoints

METRICS = ("loss", "cross_entropy", "exact", "weight_penalty", "producer_loss")  # of `make_validation`
RISING = ("exact",)  # metrics of which more is better; of all others less is


@dataclass(frozen=True)
class BestConfig:
    """What `best` means, and how long to wait for better."""

    by: str | None = None
    """Validation metric: a validation set, / and a metric, such as seen/exact. Default: the cross-entropy on the first
    validation set, which is of tasks trained on: tasks that results are reported on must not choose the weights."""
    patience: int | None = None
    """End the run after so many validations without an improvement. Default: never."""

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise UserError(f"best.patience must be at least 1, got {self.patience}")

    def metric(self, splits: tuple[str, ...]) -> str:
        """The metric's name, given the names of the validation sets. Raises UserError where none has it."""
        if self.by is None:
            return f"{splits[0]}/cross_entropy"
        split, _, metric = self.by.rpartition("/")
        if split not in splits or metric not in METRICS:
            raise UserError(
                f"best.by is {self.by!r}: write a validation set ({', '.join(splits)}), / and a metric "
                f"({', '.join(METRICS)})"
            )
        return self.by


@struct.dataclass
class Kept:
    """The best parameters so far: after which step, and the metric's value there."""

    step: Int[Array, ""]
    value: Float[Array, ""]
    params: Any


class Best:
    """The best parameters of a run, in a folder of their own (two are kept, against damage)."""

    def __init__(self, folder: Path, config: BestConfig, splits: tuple[str, ...], params: Any) -> None:
        """Go on from what the folder holds. Nothing is kept, and no patience lost, without validation sets."""
        self._config = config
        self._metric = config.metric(splits) if splits else ""
        self._rises = self._metric.rpartition("/")[2] in RISING
        self._checkpoints = Checkpoints(folder)
        worst = jnp.asarray(-math.inf if self._rises else math.inf, jnp.float32)
        step = jax.device_put(jnp.zeros((), jnp.int32), jax.tree.leaves(params)[0].sharding)
        self._kept = self._checkpoints.restore_latest(Kept(step, jax.device_put(worst, step.sharding), params))
        self.step, self._value = int(self._kept.step), float(self._kept.value)

    def consider(self, step: int, metrics: Mapping[str, float], params: Any) -> None:
        """Keep these parameters if their metric is better than every one before. A NaN is never better."""
        value = metrics[self._metric]
        if value > self._value if self._rises else value < self._value:
            self.step, self._value = step, value
            place = self._kept.step.sharding
            at, found = jax.device_put((jnp.asarray(step, jnp.int32), jnp.asarray(value, jnp.float32)), place)
            # A copy: the training step will be given the originals' memory.
            self._kept = Kept(at, found, jax.tree.map(jnp.copy, params))
            self._checkpoints.save(step, self._kept)

    def is_hopeless(self, step: int, every: int) -> bool:
        """Whether the patience has run out after so many steps, with a validation every so many of them.

        A function of the steps alone, so that a run that goes on counts as one that never stopped.
        """
        patience = self._config.patience if self._metric else None
        return patience is not None and step // every - self.step // every >= patience

    def params(self, otherwise: Any) -> Any:
        """The best parameters, or `otherwise` where none was ever kept."""
        return self._kept.params if self.step else otherwise

    def wait(self) -> None:
        """Return when what was kept is on the disk."""
        self._checkpoints.wait()

    def __enter__(self) -> "Best":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpoints.close()
