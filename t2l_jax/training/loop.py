"""The training loop: run, resume, validate, keep, stop. It reads top to bottom."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t2l_jax.decoder import Decoder
from t2l_jax.errors import Stopped, UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.io.files import locked
from t2l_jax.io.session import session
from t2l_jax.progress import progress_bar
from t2l_jax.sharding import make_mesh, place_base, place_batch, replicated
from t2l_jax.training.best import Best, BestConfig
from t2l_jax.training.loader import prefetch
from t2l_jax.training.log import RunLog
from t2l_jax.training.objectives.sft import Batch, SftConfig
from t2l_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from t2l_jax.training.producers import Producer
from t2l_jax.training.signals import stop_request
from t2l_jax.training.step import TrainState, make_step, make_validation

FIRST_SET = BestConfig()


@dataclass(frozen=True)
class LoopConfig:
    """How long, how often to look."""

    steps: int = 1000
    stop_after: int | None = None
    """End here, on the learning rate's schedule for all `steps`. A run that was stopped here then gives what it has."""
    seed: int = 0
    log_every: int = 10
    validate_every: int = 250
    checkpoint_every: int = 250

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
        """Whether what happens every so many steps, and after the last one, happens now that `done` are done."""
        return done % every == 0 or done == self.last


def train(
    producer: Producer,
    decoder: Decoder,
    base: Any,
    draw: Callable[[int], Batch],
    folder: Path,
    *,
    loop: LoopConfig,
    optimizer: OptimizerConfig,
    sft: SftConfig,
    validation: Mapping[str, Sequence[Batch]] | None = None,
    initial: Variables | None = None,
    best: BestConfig = FIRST_SET,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    wandb: str | None = None,
) -> Variables:
    """Run, or go on with, the training in `folder`; return the best variables, without validation the last.

    `draw(n)` is the batch of step n; it is called ahead of time on a thread. `initial` are the variables to begin from
    (default: the producer's fresh ones); a checkpoint in the folder wins over them. A validation metric is the
    mean over the set's batches. The batch is computed in `accumulate` parts, its tasks spread over `mesh` (default:
    one device). A folder that holds a checkpoint is continued after it, with the losses that an undisturbed run would
    have had; on GPUs that takes XLA_FLAGS=--xla_gpu_deterministic_ops=true.

    The folder gets metrics.jsonl, tensorboard/, curves.png, environment.json, checkpoints/ and best/. Raises UserError
    where a loss is not finite or another process trains there, Stopped where SIGTERM or SIGINT asked for it, after a
    checkpoint; what a stopped run has learned is returned by one with `loop.stop_after` at that step.
    """
    mesh = mesh or make_mesh(data=1)
    variables = jax.device_put(initial or producer.init(jax.random.key(loop.seed)), replicated(mesh))
    constants = {name: value for name, value in variables.items() if name != "params"}
    gradient = make_optimizer(optimizer, loop.steps, loop.last)
    rates = np.asarray(make_schedule(optimizer, loop.steps, loop.last)(np.arange(loop.last)))
    fresh = TrainState(jnp.zeros((), jnp.int32), variables["params"], gradient.init(variables["params"]))
    base = place_base(mesh, base)
    step = make_step(producer, decoder, sft, gradient, loop.seed, accumulate=accumulate, mesh=mesh)
    validate = _validator(make_validation(producer, decoder, sft, mesh), constants, base, validation or {}, mesh)
    with locked(folder), Checkpoints(folder / "checkpoints") as checkpoints, stop_request() as request:
        state = checkpoints.restore_latest(jax.device_put(fresh, replicated(mesh)))
        kept = Best(folder / "best", best, tuple(validation or ()), state.params)
        start = int(state.step)
        to_do = range(start, start if kept.is_hopeless(start, loop.validate_every) else loop.last)
        make = _loader(draw, mesh)
        told = session(folder, start, list(mesh.devices.flat))
        with (
            told,
            kept,
            RunLog(folder, start, wandb) as log,
            prefetch(make, to_do) as batches,
            progress_bar() as progress,
        ):
            bar = progress.add_task("training", total=loop.last, completed=start, rate="")
            if validation and start >= loop.last and not log.validated(start):  # stopped here, and told to end here
                _look(validate, log, kept, start, state.params)
            for done, (batch, placed) in enumerate(batches, start + 1):
                state, metrics = step(state, constants, base, placed)
                log.add(done, metrics, float(rates[done - 1]), batch)
                stop = request.signal
                # Also before a checkpoint: what it follows is never computed again, and a NaN must not get into it.
                if stop or any(loop.due(done, n) for n in (loop.log_every, loop.validate_every, loop.checkpoint_every)):
                    progress.update(bar, completed=done, rate=log.flush())
                if validation and loop.due(done, loop.validate_every):
                    _look(validate, log, kept, done, state.params)
                enough = kept.is_hopeless(done, loop.validate_every)
                if stop or enough or loop.due(done, loop.checkpoint_every):
                    checkpoints.save(done, state)
                    log.draw()
                log.resume()
                if stop:
                    raise Stopped(stop, f"after step {done} of {loop.last}, which is saved in {folder}")
                if enough:
                    print(f"t2l: no better since step {kept.step}: ended after step {done}", file=sys.stderr)
                    break
    return {"params": kept.params(state.params), **constants}


def _loader(draw: Callable[[int], Batch], mesh: Mesh) -> Callable[[int], tuple[Batch, Batch]]:
    """n -> the batch of step n, as it was drawn and on the devices."""

    def load(n: int) -> tuple[Batch, Batch]:
        batch = draw(n)
        return batch, place_batch(mesh, batch)

    return load


def _look(validate: Callable[[Any], dict[str, float]], log: RunLog, kept: Best, done: int, params: Any) -> None:
    """Validate the parameters after `done` steps, keep them if they are the best, and write down what was found.

    In this order: neither a record nor a checkpoint may follow from a best that a kill now would lose.
    """
    found = validate(params)
    kept.consider(done, found, params)
    kept.wait()
    log.validation(done, found)


def _validator(
    validate: Callable[..., Any], constants: Any, base: Any, sets: Mapping[str, Sequence[Batch]], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """params -> `set/metric`, each the mean over the set's batches."""
    placed = {name: [place_batch(mesh, batch) for batch in batches] for name, batches in sets.items()}

    def run(params: Any) -> dict[str, float]:
        found = {}
        for name, batches in placed.items():
            some = jax.device_get([validate(params, constants, base, batch) for batch in batches])
            for metric in some[0]:
                found[f"{name}/{metric}"] = float(np.mean([values[metric] for values in some]))
        return found

    return run
