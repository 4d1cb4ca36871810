"""Trackers, which receive the metrics of a run. To add one, implement `Tracker` and list it in TRACKERS.

A tracker is opened with the run folder and the step after which the run starts. It must hide metrics that an earlier
process wrote for later steps, since those steps are repeated.
"""

import importlib
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, os_errors_explained, read_json, read_jsonl
from t2l_jax.schema import Index, Schema, checked
from t2l_jax.training.curves import draw_curves
from t2l_jax.training.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
DRAWINGS_SHARE = 0.01  # maximum share of a run's time that is spent drawing curves


class Tracker(Protocol):
    """A destination of metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""

    def flush(self) -> None:
        """Return once written metrics would survive a kill: steps before the next checkpoint are not repeated."""

    def close(self, failed: bool) -> None:
        """End the run; `failed` if by an error."""


OpenTracker = Callable[[Path, int], Tracker]


class JsonLines:
    """metrics.jsonl: one record per step, and one per validation."""

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / METRICS_FILE
        records = [record for record in read_records(self._path) if record["step"] <= start]
        atomic_write(self._path, "".join(json.dumps(record) + "\n" for record in records))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with os_errors_explained(self._path), self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass


class TensorBoard:
    """Event files in the folder tensorboard/."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder / "tensorboard"
        self._file = EventFile(self._folder, start)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with os_errors_explained(self._folder):
            self._file.add(step, metrics)

    def flush(self) -> None:
        with os_errors_explained(self._folder):
            self._file.flush()

    def close(self, failed: bool) -> None:
        self._file.close()


class Curves:
    """curves.png, redrawn from time to time from metrics.jsonl."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._drawn, self._took = time.perf_counter(), 0.5

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def flush(self) -> None:
        if time.perf_counter() - self._drawn > self._took / DRAWINGS_SHARE:
            self._draw()

    def close(self, failed: bool) -> None:
        self._draw()

    def _draw(self) -> None:
        began = time.perf_counter()
        with suppress(UserError):  # no picture is worth the end of a run
            draw_curves(read_records(self._folder / METRICS_FILE), self._folder / "curves.png")
        self._drawn = time.perf_counter()
        self._took = self._drawn - began


class WeightsAndBiases:
    """A run at Weights & Biases, with the recipe as its configuration; a later process resumes it.

    Raises UserError if W&B is not installed or cannot start a run.
    """

    def __init__(self, project: str, folder: Path, start: int) -> None:
        wandb = import_wandb()
        name, recipe = folder / "wandb_id.txt", folder / "recipe.json"
        if not name.exists():
            atomic_write(name, secrets.token_hex(4))
        config = read_json(recipe) if recipe.exists() else {}
        try:
            self._run = wandb.init(
                project=project, id=name.read_text(), name=folder.name, resume="allow", dir=str(folder), config=config
            )
        except Exception as error:  # no login, no network, ...: any kind of exception
            raise UserError(
                f"--wandb: W&B cannot start a run ({error or type(error).__name__}): run `wandb login`, set "
                "WANDB_MODE=offline, or leave the option out"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


TRACKERS: tuple[OpenTracker, ...] = (JsonLines, TensorBoard, Curves)


class Record(Schema, extra="allow"):
    """A line of METRICS_FILE: a step and its metrics, null where they were not finite."""

    __pydantic_extra__: dict[str, float | None]
    step: Index


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl. A last line that a kill truncated is left out.

    Raises UserError that names the line if another one is no record.
    """
    if not path.exists():
        return []
    lines = read_jsonl(path, partial=True)
    return [checked(Record, fields, f"{path}, line {n}").model_dump() for n, fields in lines]


def import_wandb() -> Any:
    """The wandb module. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb, or leave the option out") from error
