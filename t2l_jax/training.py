"""Training a producer of adapters by SFT: state, step, loop, resume. It reads top to bottom."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int

from t2l_jax.decoder import Decoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.io.files import atomic_write
from t2l_jax.objectives import Batch, SftConfig, sft_loss
from t2l_jax.producers import Producer
from t2l_jax.progress import progress_bar

Metrics = dict[str, Any]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping by global norm, warm-up, and decay to zero (paper, appendix on training details)."""

    learning_rate: float = 2.5e-5
    weight_decay: float = 1e-2
    clip: float = 1.0
    warmup: float = 0.2  # share of the steps
    decay: Literal["linear", "cosine"] = "linear"
    cooldown: int = 0  # the run's last steps, over which the rate also falls linearly to zero: for runs that end early


@dataclass(frozen=True)
class LoopConfig:
    """How long, how often to look."""

    steps: int = 1000
    stop_after: int | None = None  # end here, on the learning rate's schedule for all `steps`
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


@struct.dataclass
class TrainState:
    """What a checkpoint holds: the step, what is trained, the optimiser. Never the base LLM."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


def make_optimizer(config: OptimizerConfig, steps: int, last: int | None = None) -> optax.GradientTransformation:
    """The optimiser of a run whose schedule takes `steps` steps and which ends after `last` (default: all) of them."""
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
    schedule = whole
    if config.cooldown:
        schedule = lambda step: whole(step) * jnp.clip((end - step) / config.cooldown, 0, 1)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adamw(schedule, weight_decay=config.weight_decay))


def make_step(
    producer: Producer, decoder: Decoder, sft: SftConfig, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[TrainState, Any, Any, Batch], tuple[TrainState, Metrics]]:
    """The jitted step (state, constants, base, batch) -> (state, metrics). The state is donated: use the new one."""

    def step(state: TrainState, constants: Any, base: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        make_key, loss_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))

        def objective(params: Any) -> tuple[Array, Metrics]:
            variables = {"params": params, **constants}
            adapter, extra = producer.adapters(variables, batch.z, batch.task_ids, make_key)
            loss, metrics = sft_loss(decoder, base, adapter, batch, sft, loss_key)
            return loss + extra, metrics

        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0)


def make_validation(producer: Producer, decoder: Decoder, sft: SftConfig) -> Callable[..., Metrics]:
    """The jitted (params, constants, base, batch) -> metrics, without dropout, noise or smoothing."""

    def validate(params: Any, constants: Any, base: Any, batch: Batch) -> Metrics:
        adapter, _ = producer.adapters({"params": params, **constants}, batch.z, batch.task_ids)
        return sft_loss(decoder, base, adapter, batch, sft, None)[1]

    return jax.jit(validate)


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
) -> Variables:
    """Run, or go on with, the training in `folder`; return the trained variables.

    `draw(n)` is the batch of step n; a validation metric is the mean over its batches. The folder gets `metrics.jsonl`
    and `checkpoints/`; a folder that holds a checkpoint is continued after it, with the losses that an undisturbed run
    would have had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = producer.init(jax.random.key(loop.seed))
    constants = {name: value for name, value in variables.items() if name != "params"}
    gradient = make_optimizer(optimizer, loop.steps, loop.last)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], gradient.init(variables["params"]))
    step = make_step(producer, decoder, sft, gradient, loop.seed)
    validate = make_validation(producer, decoder, sft)
    with Checkpoints(folder / "checkpoints") as checkpoints, progress_bar() as progress:
        state = checkpoints.restore_latest(state)
        start = int(state.step)
        log = MetricsLog(folder / "metrics.jsonl", start)
        bar = progress.add_task("training", total=loop.last, completed=start, rate="")
        for n in range(start, loop.last):
            batch, done = draw(n), n + 1
            state, metrics = step(state, constants, base, batch)
            log.add(done, metrics, int((batch.segments > 0).sum()))
            # Also before a checkpoint: what it follows is never computed again, and a NaN must not get into it.
            if any(loop.due(done, every) for every in (loop.log_every, loop.validate_every, loop.checkpoint_every)):
                progress.update(bar, completed=done, rate=log.flush())
            if validation and loop.due(done, loop.validate_every):
                for name, held_out in validation.items():
                    found = [validate(state.params, constants, base, some) for some in held_out]
                    log.write(done, name, jax.tree.map(lambda *values: sum(values) / len(values), *found))
            if loop.due(done, loop.checkpoint_every):
                checkpoints.save(done, state)
    return {"params": state.params, **constants}


class MetricsLog:
    """metrics.jsonl, one line a step. Device values wait until `flush`, so that no step waits for them.

    Lines after `start` (left by a run that was killed past its last checkpoint) are dropped: they will come again.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the half line of a killed run
            kept += [line + "\n"] if record["step"] <= start else []
        atomic_write(path, "".join(kept))
        self._waiting: list[tuple[int, Metrics]] = []
        self._tokens, self._since = 0, time.perf_counter()

    def add(self, step: int, metrics: Metrics, tokens: int) -> None:
        """Note a step's metrics (device arrays) and its count of real tokens."""
        self._waiting.append((step, metrics))
        self._tokens += tokens

    def flush(self) -> str:
        """Fetch and write what waits; stop on a loss that is not finite. Returns loss and rate in words."""
        fetched = [(step, {k: float(v) for k, v in jax.device_get(m).items()}) for step, m in self._waiting]
        seconds = time.perf_counter() - self._since
        rate = self._tokens / seconds
        with self._path.open("a") as file:
            for step, metrics in fetched:
                file.write(json.dumps({"step": step, **metrics, "tokens_per_second": round(rate, 1)}) + "\n")
        for step, metrics in fetched:
            if not math.isfinite(metrics["loss"]):
                raise UserError(f"the loss of step {step} is {metrics['loss']}: lower the learning rate ({self._path})")
        loss = float(np.mean([metrics["loss"] for _, metrics in fetched]))
        self._waiting, self._tokens, self._since = [], 0, time.perf_counter()
        return f"loss {loss:.3f}, {rate:.0f} tokens/s"

    def write(self, step: int, split: str, metrics: Metrics) -> None:
        """Write one line of `split/metric` at once (validation), and leave its time out of the rate."""
        before = time.perf_counter()
        with self._path.open("a") as file:
            values = {f"{split}/{name}": float(value) for name, value in jax.device_get(metrics).items()}
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._since += time.perf_counter() - before
