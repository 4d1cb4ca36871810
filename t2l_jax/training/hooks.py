"""What happens after a step: hooks of one shape, called in order. A hook decides itself if it is due.

The order (write metrics, validate and keep the best, save, end) is what makes a resumed run exact: a record or a
checkpoint never follows from something that a kill could still lose.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from t2l_jax.errors import Stopped, UserError
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.training.best import Best
from t2l_jax.training.log import RunLog
from t2l_jax.training.step import TrainState


@dataclass(frozen=True)
class LoopConfig:
    """How long a run is, and how often it is looked at."""

    steps: int = 1000
    """Training steps, which the learning rate's schedule spans."""
    stop_after: int | None = None
    """End after this step, on the schedule for all `steps`. A run that was stopped there then gives what it has."""
    seed: int = 0
    """Seed of the batches, the fresh weights, dropout and noise."""
    log_every: int = 10
    """Steps between two lines of progress."""
    validate_every: int = 250
    """Steps between two validations."""
    checkpoint_every: int = 250
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "seed" else 1
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")

    @property
    def last(self) -> int:
        """The number of steps after which the run ends."""
        return self.steps if self.stop_after is None else min(self.stop_after, self.steps)

    def due(self, done: int, every: int) -> bool:
        """True every `every` steps and after the last."""
        return done % every == 0 or done == self.last


@dataclass
class Moment:
    """A run after a step, as every hook sees it. `ends`: a hook found that the run is over."""

    done: int
    state: TrainState
    metrics: Any  # device arrays
    batch: Any  # host arrays
    stop: signal.Signals | None  # the signal that asked the run to stop
    ends: bool = False


Hook = Callable[[Moment], None]


@dataclass(frozen=True)
class WriteMetrics:
    """Notes every step; fetches and writes what was noted when somebody looks, and shows it."""

    loop: LoopConfig
    log: RunLog
    rates: np.ndarray  # learning rate of every step
    progress: Progress
    bar: Any

    def __call__(self, moment: Moment) -> None:
        self.log.add(moment.done, moment.metrics, float(self.rates[moment.done - 1]), moment.batch)
        loop = self.loop
        # Also before a checkpoint: what it follows is never computed again, and a NaN must not get into it.
        every = (loop.log_every, loop.validate_every, loop.checkpoint_every)
        if moment.stop or any(loop.due(moment.done, steps) for steps in every):
            self.progress.update(self.bar, completed=moment.done, rate=self.log.flush())


@dataclass(frozen=True)
class Validate:
    """Validates, keeps the best parameters, and writes the metrics down: the mean over each set's batches."""

    loop: LoopConfig
    sets: Mapping[str, Sequence[Any]]
    metrics_of: Callable[[Any, Any], Any]  # parameters, batch
    log: RunLog
    best: Best

    def __call__(self, moment: Moment) -> None:
        if self.sets and self.loop.due(moment.done, self.loop.validate_every):
            self.look(moment.done, moment.state.params)
        moment.ends |= self.best.out_of_patience(moment.done, self.loop.validate_every)

    def look(self, done: int, params: Any) -> None:
        """Validate the parameters after `done` steps: `set/metric`, kept before it is written down."""
        metrics: dict[str, float] = {}
        for name, batches in self.sets.items():
            some = jax.device_get([self.metrics_of(params, batch) for batch in batches])
            metrics |= {f"{name}/{key}": float(np.mean([values[key] for values in some])) for key in some[0]}
        self.best.consider(done, metrics, params)
        self.best.wait()
        self.log.validation(done, metrics)


@dataclass(frozen=True)
class SaveCheckpoint:
    """Saves the state now and then, and before the run ends."""

    loop: LoopConfig
    checkpoints: Checkpoints

    def __call__(self, moment: Moment) -> None:
        if moment.stop or moment.ends or self.loop.due(moment.done, self.loop.checkpoint_every):
            self.checkpoints.save(moment.done, moment.state)


@dataclass(frozen=True)
class End:
    """Leaves the run where a signal asked for it or nothing improves; otherwise the clock of the rates goes on."""

    loop: LoopConfig
    log: RunLog
    best: Best
    folder: Path

    def __call__(self, moment: Moment) -> None:
        self.log.resume()
        if moment.stop:
            where = f"after step {moment.done} of {self.loop.last}, which is saved in {self.folder}"
            raise Stopped(moment.stop, where)
        if moment.ends:
            print(f"t2l: no better since step {self.best.step}: ended after step {moment.done}", file=sys.stderr)
