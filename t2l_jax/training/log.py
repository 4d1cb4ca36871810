"""What a run writes down: metrics.jsonl, TensorBoard, W&B, curves; and the batch that made a loss not finite."""

import importlib
import io
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from t2l_jax.errors import Stopped, UserError
from t2l_jax.io.files import atomic_write, explained, read_json
from t2l_jax.training.curves import draw_curves
from t2l_jax.training.objectives.sft import Batch
from t2l_jax.training.tensorboard import EventFile

CURVES_EVERY = 30.0  # seconds, at least, from one drawing to the next
Record = dict[str, Any]
Writer = Callable[[int, Mapping[str, float]], None]


class RunLog:
    """The metrics of a run, one record a step. Device values wait until `flush`, so that no step waits for them.

    Records after `start` (left by a run that was killed past its last checkpoint) are dropped: they will come again.
    """

    def __init__(self, folder: Path, start: int, wandb: str | None = None) -> None:
        """Open the folder's log; `wandb` names a project at W&B to report to. Raises UserError without W&B."""
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        records = [record for record in read_records(self._path) if record["step"] <= start]
        atomic_write(self._path, "".join(json.dumps(record) + "\n" for record in records))
        self._validated = {record["step"] for record in records if "loss" not in record}
        self._wandb = start_wandb(wandb, folder) if wandb else None
        self._tensorboard = EventFile(folder / "tensorboard", start)
        self._waiting: list[tuple[int, Any, float, Batch]] = []
        self._since = self._drawn = time.perf_counter()

    def add(self, step: int, metrics: Any, learning_rate: float, batch: Batch) -> None:
        """Note a step's metrics (device arrays) and its batch (host arrays)."""
        self._waiting.append((step, metrics, learning_rate, batch))

    def flush(self) -> str:
        """Fetch and write what waits. Returns loss and rate in words.

        Raises UserError where a loss or gradient is not finite, with the batch of that step saved beside the metrics.
        """
        fetched = jax.device_get([metrics for _, metrics, _, _ in self._waiting])  # waits for the device
        seconds = time.perf_counter() - self._since
        sizes = np.sum([count_tokens(batch) for *_, batch in self._waiting], axis=0)
        rates = {"tokens_per_second": sizes[0] / seconds, "supervised_per_second": sizes[1] / seconds}
        losses = []
        for (step, _, learning_rate, batch), metrics in zip(self._waiting, fetched, strict=True):
            tokens, _, places = count_tokens(batch)
            values = {name: float(value) for name, value in metrics.items()}
            padding = {"learning_rate": learning_rate, "padding": 1 - tokens / places}
            self._write(step, {**values, **padding, **{name: round(float(rate), 1) for name, rate in rates.items()}})
            self._refuse(step, values, batch)
            losses.append(values["loss"])
        self._waiting = []
        self._flush()
        return f"loss {np.mean(losses):.3f}, {rates['tokens_per_second']:.0f} tokens/s"

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one record of validation metrics at once."""
        self._write(step, metrics)
        self._flush()

    def _flush(self) -> None:
        """Bring TensorBoard's points to the disk: what a kill loses before a checkpoint is never written again."""
        with explained(self._path.parent / "tensorboard"):
            self._tensorboard.flush()

    def validated(self, step: int) -> bool:
        """Whether the log already held a validation after this step when it was opened."""
        return step in self._validated

    def draw(self, at_once: bool = False) -> None:
        """Draw curves.png anew, unless that was done a moment ago."""
        if at_once or time.perf_counter() - self._drawn > CURVES_EVERY:
            draw_curves(read_records(self._path), self._folder / "curves.png")
            self._drawn = time.perf_counter()

    def resume(self) -> None:
        """Training goes on: leave what came after the last flush (validation, a checkpoint) out of the rates."""
        if not self._waiting:
            self._since = time.perf_counter()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with explained(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with explained(self._path.parent / "tensorboard"):
            self._tensorboard.add(step, metrics)
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def _refuse(self, step: int, values: Mapping[str, float], batch: Batch) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                path = self._folder / f"batch_of_step_{step}.npz"
                save_batch(path, batch)
                raise UserError(
                    f"the {name} of step {step} is {values[name]}: its batch is in {path}; look for what is odd in "
                    "it, or begin again in a new folder with a lower learning rate"
                )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.draw(at_once=True)
        finally:
            self._tensorboard.close()
            if self._wandb is not None:  # a run that was asked to stop has not failed
                self._wandb.finish(exit_code=0 if error is None or isinstance(error, Stopped) else 1)


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl, without the half line that a killed run may have left at its end."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def count_tokens(batch: Batch) -> tuple[int, int, int]:
    """How many tokens, supervised tokens, and places for tokens a batch of host arrays has."""
    segments = np.asarray(batch.segments)
    return int(np.sum(segments > 0)), int(np.sum(np.asarray(batch.weights) > 0)), segments.size


def save_batch(path: Path, batch: Batch) -> None:
    """Write a batch as .npz, one array a field."""
    buffer = io.BytesIO()
    arrays: Any = {name: np.asarray(value) for name, value in vars(batch).items()}
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def import_wandb() -> Any:
    """The wandb module; UserError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb, or leave the option out") from error


def start_wandb(project: str, folder: Path) -> Any:
    """A W&B run with the folder's recipe; the run of a folder that goes on is the same one.

    Raises UserError where W&B is not installed, or refuses.
    """
    wandb = import_wandb()
    name, recipe = folder / "wandb_id.txt", folder / "recipe.json"
    if not name.exists():
        atomic_write(name, secrets.token_hex(4))
    config = read_json(recipe) if recipe.exists() else {}
    try:
        return wandb.init(
            project=project, id=name.read_text(), name=folder.name, resume="allow", dir=str(folder), config=config
        )
    except Exception as error:  # no login, no network: of every kind
        raise UserError(
            f"--wandb: W&B does not begin a run ({error or type(error).__name__}): run `wandb login`, set "
            "WANDB_MODE=offline, or leave the option out"
        ) from error
