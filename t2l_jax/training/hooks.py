"""Hooks that are called in order after each step. Each decides by itself whether it is due.

The order (write metrics, validate and keep the best, save, end) makes a resumed run exact: no record or checkpoint
depends on something that a kill could still lose.
"""

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from t2l_jax.distributed import from_main, is_main
from t2l_jax.errors import Stopped
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.schema import Count, Index, check_fields
from t2l_jax.training.best import Best
from t2l_jax.training.log import RunLog
from t2l_jax.training.step import TrainState


@dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and intervals of logging, validation and checkpoints."""

    steps: Count = 1000
    """Number of training steps; the learning-rate schedule spans all of them."""
    stop_after: Count | None = None
    """Stop after this step and publish, keeping the schedule for `steps`. Ends a run interrupted there, too."""
    seed: Index = 0
    """Random seed of batches, initial weights, dropout and noise."""
    log_every: Count = 10
    """Steps between log flushes."""
    validate_every: Count = 250
    """Steps between validations."""
    checkpoint_every: Count = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check_fields(self, "loop")

    @property
    def last(self) -> int:
        """The step after which the run ends."""
        return self.steps if self.stop_after is None else min(self.stop_after, self.steps)

    def due(self, done: int, every: int) -> bool:
        """True every `every` steps and after the last."""
        return done % every == 0 or done == self.last


@dataclass
class Moment:
    """The state of a run after `done` steps. A hook sets `ends` to end the run."""

    done: int
    state: TrainState
    metrics: Any  # device arrays
    batch: Any  # host arrays
    stop: signal.Signals | None  # the signal that asked the run to stop
    ends: bool = False


Hook = Callable[[Moment], None]


@dataclass(frozen=True)
class WriteMetrics:
    """Queues every step's metrics; fetches, writes and shows them when a log, validation or checkpoint is due."""

    loop: LoopConfig
    log: RunLog
    rates: np.ndarray  # learning rate of every step
    progress: Progress
    bar: Any

    def __call__(self, moment: Moment) -> None:
        self.log.add(moment.done, moment.metrics, float(self.rates[moment.done - 1]), moment.batch)
        loop = self.loop
        # Also before a checkpoint: steps before it are not repeated, and it must not contain a NaN.
        every = (loop.log_every, loop.validate_every, loop.checkpoint_every)
        if moment.stop or any(loop.due(moment.done, steps) for steps in every):
            self.progress.update(self.bar, completed=moment.done, rate=self.log.flush())


@dataclass(frozen=True)
class Validate:
    """Validates, keeps the best parameters, and logs each metric's mean over the batches of each validation set."""

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
        """Validate the parameters after `done` steps; save the best before logging the metrics (`set/metric`)."""
        metrics: dict[str, float] = {}
        for name, batches in self.sets.items():
            some = jax.device_get([self.metrics_of(params, batch) for batch in batches])
            metrics |= {f"{name}/{key}": float(np.mean([values[key] for values in some])) for key in some[0]}
        metrics = from_main(metrics)  # what decides must not differ in a last bit
        self.best.consider(done, metrics, params)
        self.best.wait()
        self.log.validation(done, metrics)


@dataclass(frozen=True)
class SaveCheckpoint:
    """Saves the state every `checkpoint_every` steps and before the run ends."""

    loop: LoopConfig
    checkpoints: Checkpoints

    def __call__(self, moment: Moment) -> None:
        if moment.stop or moment.ends or self.loop.due(moment.done, self.loop.checkpoint_every):
            self.checkpoints.save(moment.done, moment.state)


@dataclass(frozen=True)
class End:
    """Ends the run on a signal (raises Stopped) or when patience is exhausted; otherwise resumes the rate clock."""

    loop: LoopConfig
    log: RunLog
    best: Best
    folder: Path

    def __call__(self, moment: Moment) -> None:
        self.log.resume()
        if moment.stop:
            where = f"after step {moment.done} of {self.loop.last}, which is saved in {self.folder}"
            raise Stopped(moment.stop, where)
        if moment.ends and is_main():
            print(f"t2l: no improvement since step {self.best.step}: ended after step {moment.done}", file=sys.stderr)
