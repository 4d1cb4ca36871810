"""The training loop: run or resume, validate, keep the best, checkpoint, stop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t2l_jax.distributed import in_main, is_main
from t2l_jax.hypernet import Variables
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.io.files import locked
from t2l_jax.io.session import session
from t2l_jax.progress import progress_bar
from t2l_jax.sharding import make_mesh, place_batch, place_part, put, trained_sharding
from t2l_jax.training.best import Best, BestConfig
from t2l_jax.training.hooks import End, Hook, LoopConfig, Moment, SaveCheckpoint, Validate, WriteMetrics
from t2l_jax.training.loader import prefetch
from t2l_jax.training.log import RunLog
from t2l_jax.training.objectives import Objective
from t2l_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from t2l_jax.training.signals import stop_request
from t2l_jax.training.step import TrainState, make_step, make_validation
from t2l_jax.training.trackers import TRACKERS, OpenTracker
from t2l_jax.training.trainees import Trainee


@dataclass(frozen=True)
class Batches:
    """A run's data: `draw(n)` returns the batch of step n (prefetched on a thread); and the validation sets.

    Of several processes each draws the part of the batch at its `local_slots`. All batches of a validation set have
    equal weight.
    """

    draw: Callable[[int], Any]
    validation: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run. Batches are computed in `accumulate` parts, with tasks sharded over the mesh."""

    loop: LoopConfig = field(default_factory=LoopConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    best: BestConfig = field(default_factory=BestConfig)
    accumulate: int = 1
    mesh: Mesh | None = None  # default: one device
    trackers: Sequence[OpenTracker] = TRACKERS


def train(
    trainee: Trainee,
    objective: Objective,
    batches: Batches,
    folder: Path,
    run: RunConfig,
    initial: Variables | None = None,
) -> Variables:
    """Start or resume training in `folder`; return the best variables or, without validation, the last.

    `initial` are the initial variables (default: fresh ones); a checkpoint in the folder takes precedence. A resumed
    run has the same losses as an uninterrupted one; on GPUs this requires XLA_FLAGS=--xla_gpu_deterministic_ops=true.
    Raises UserError if a loss is not finite or another process uses the folder, and Stopped, after saving a
    checkpoint, on SIGTERM or SIGINT. Several processes need a folder that they share; the main one writes the logs.
    """
    mesh = run.mesh or make_mesh(data=1)
    variables = initial or trainee.init(jax.random.key(run.loop.seed))
    variables = put(variables, trained_sharding(mesh, variables))
    constants = {name: value for name, value in variables.items() if name != "params"}
    objective = objective.place(mesh)
    optimizer = make_optimizer(run.optimizer, run.loop.steps, run.loop.last)
    step = make_step(trainee, optimizer, run.loop.seed, run.accumulate, mesh)
    sets = {name: [place_batch(mesh, batch) for batch in some] for name, some in batches.validation.items()}
    validate = make_validation(trainee)
    fresh = TrainState(jnp.zeros((), jnp.int32), variables["params"], optimizer.init(variables["params"]))
    with (
        in_main(partial(locked, folder)),
        Checkpoints(folder / "checkpoints") as checkpoints,
        stop_request() as request,
    ):
        state = checkpoints.restore_latest(put(fresh, trained_sharding(mesh, fresh)))
        best = Best(folder / "best", run.best, tuple(sets), objective, state.params)
        look = partial(Validate, run.loop, sets, lambda params, batch: validate(params, constants, objective, batch))
        with (
            in_main(lambda: session(folder, int(state.step), list(mesh.devices.flat))),
            _hooks(run, folder, objective, state, checkpoints, best, look) as (hooks, to_do),
            prefetch(partial(_load, batches.draw, mesh), to_do) as loaded,
        ):
            for n, (batch, placed) in zip(to_do, loaded, strict=True):
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, constants, objective, placed)
                moment = Moment(n + 1, state, metrics, batch, request.after(n + 1))
                for hook in hooks:
                    hook(moment)
                if moment.ends:
                    break
    return {"params": best.params(state.params), **constants}


@contextmanager
def _hooks(
    run: RunConfig,
    folder: Path,
    objective: Objective,
    state: TrainState,
    checkpoints: Checkpoints,
    best: Best,
    look: Callable[[RunLog, Best], Validate],
) -> Iterator[tuple[tuple[Hook, ...], range]]:
    """The hooks to call after each step, in order, and the remaining steps."""
    loop, start = run.loop, int(state.step)
    over = best.out_of_patience(start, loop.validate_every)
    rates = np.asarray(make_schedule(run.optimizer, loop.steps, loop.last)(np.arange(loop.last)))
    with best, RunLog(folder, start, objective, run.trackers) as log, progress_bar(not is_main()) as progress:
        validate = look(log, best)
        if (
            validate.sets and start >= loop.last and not log.validated(start)
        ):  # resumed only to end where it was interrupted
            validate.look(start, state.params)
        bar = progress.add_task("training", total=loop.last, completed=start, rate="")
        hooks = (
            WriteMetrics(loop, log, rates, progress, bar),
            validate,
            SaveCheckpoint(loop, checkpoints),
            End(loop, log, best, folder),
        )
        yield hooks, range(start, start if over else loop.last)


def _load(draw: Callable[[int], Any], mesh: Mesh, n: int) -> tuple[Any, Any]:
    """The batch of step n, or this process's part of it, in host memory and on the devices."""
    batch = draw(n)
    return batch, place_part(mesh, batch)
