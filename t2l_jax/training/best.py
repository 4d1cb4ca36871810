"""Selection of the best parameters of a run, and early stopping."""

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
from t2l_jax.schema import Count, check_fields
from t2l_jax.sharding import put, replicated
from t2l_jax.training.objectives import Objective


@dataclass(frozen=True)
class BestConfig:
    """Model selection and early stopping."""

    by: str | None = None
    """Validation metric that selects the weights: SET/METRIC, such as seen/exact. Default: the objective's own metric
    (cross-entropy for SFT) on the first validation set, which holds training tasks: tasks that results are reported on
    must not select the weights."""
    patience: Count | None = None
    """End the run after this many validations without improvement. Default: never."""

    def __post_init__(self) -> None:
        check_fields(self, "best")

    def metric(self, splits: tuple[str, ...], objective: Objective | type[Objective]) -> str:
        """The metric's full name, SET/METRIC. Raises UserError if the set or the metric does not exist."""
        if self.by is None:
            return f"{splits[0]}/{objective.best}"
        split, _, metric = self.by.rpartition("/")
        metrics = ("loss", *objective.metrics, "trainee_loss")
        if split not in splits or metric not in metrics:
            raise UserError(
                f"best.by is {self.by!r}: write a validation set ({', '.join(splits)}), a slash and a metric "
                f"({', '.join(metrics)})"
            )
        return self.by


@struct.dataclass
class BestState:
    """The best parameters so far, the step they were reached at, and the metric's value there."""

    step: Int[Array, ""]
    value: Float[Array, ""]
    params: Any


class Best:
    """The best parameters of a run, in a folder of their own (the last two are kept in case one is damaged)."""

    def __init__(
        self, folder: Path, config: BestConfig, splits: tuple[str, ...], objective: Objective, params: Any
    ) -> None:
        """Resume from the folder's contents. Without validation sets nothing is kept and patience is ignored."""
        self._patience = config.patience if splits else None
        self._metric = config.metric(splits, objective) if splits else ""
        self._rises = self._metric.rpartition("/")[2] in objective.rising
        self._checkpoints = Checkpoints(folder)
        worst = jnp.asarray(-math.inf if self._rises else math.inf, jnp.float32)
        self._place = replicated(jax.tree.leaves(params)[0].sharding.mesh)
        step, worst = put((jnp.zeros((), jnp.int32), worst), self._place)
        fresh = BestState(step, worst, params)
        self._state = self._checkpoints.restore_latest(fresh)
        self.step, self._value = int(self._state.step), float(self._state.value)

    def consider(self, step: int, metrics: Mapping[str, float], params: Any) -> None:
        """Keep these parameters if their metric is the best so far. A NaN is never better."""
        value = metrics[self._metric]
        if value > self._value if self._rises else value < self._value:
            self.step, self._value = step, value
            at, reached = put((jnp.asarray(step, jnp.int32), jnp.asarray(value, jnp.float32)), self._place)
            # A copy: the originals are donated to the next training step.
            self._state = BestState(at, reached, jax.tree.map(jnp.copy, params))
            self._checkpoints.save(step, self._state)

    def out_of_patience(self, step: int, every: int) -> bool:
        """True if `patience` validations, one every `every` steps, have passed without improvement by this step.

        It depends on the steps alone, so that an interrupted run ends where an uninterrupted one would.
        """
        return self._patience is not None and step // every - self.step // every >= self._patience

    def params(self, otherwise: Any) -> Any:
        """The best parameters, or `otherwise` if none were kept."""
        return self._state.params if self.step else otherwise

    def wait(self) -> None:
        """Wait until the kept parameters are on disk."""
        self._checkpoints.wait()

    def __enter__(self) -> "Best":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpoints.__exit__(kind, error, trace)
