"""Transfers metrics from the device to the trackers, and saves the batch of a non-finite loss."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from t2l_jax.distributed import from_main, gather, is_main, several, together
from t2l_jax.errors import Stopped, UserError
from t2l_jax.io.files import atomic_write
from t2l_jax.training.objectives import Objective
from t2l_jax.training.trackers import METRICS_FILE, TRACKERS, OpenTracker, Tracker, read_records


class RunLog:
    """The metrics of a run, one record per step. Device values are fetched in `flush`, so that no step blocks on them.

    Records after step `start` (of a run killed after its last checkpoint) are dropped, since those steps are repeated.
    Of several processes the main one writes, and rates are those of all.
    """

    def __init__(
        self, folder: Path, start: int, objective: Objective, trackers: Sequence[OpenTracker] = TRACKERS
    ) -> None:
        self._folder = folder
        self._objective = objective
        self._failed = True  # until the run succeeds
        self._trackers: list[Tracker] = []
        validated: list[int] = []
        with ExitStack() as stack:
            with together():
                if is_main():
                    validated = [r["step"] for r in read_records(folder / METRICS_FILE) if "loss" not in r]
                for open_tracker in trackers if is_main() else ():
                    self._trackers.append(open_tracker(folder, start))
                    stack.callback(self._close, self._trackers[-1])
            self._open = stack.pop_all()
        self._validated = set(from_main(validated))
        self._waiting: list[tuple[int, Any, float, Any]] = []
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Any, learning_rate: float, batch: Any) -> None:
        """Queue a step's metrics (device arrays) and its batch (host arrays)."""
        self._waiting.append((step, metrics, learning_rate, batch))

    def flush(self) -> str:
        """Fetch and write the queued metrics. Returns mean loss and rate as text.

        Raises UserError if a loss or gradient norm is not finite, after saving the batch of that step.
        """
        fetched = jax.device_get([metrics for _, metrics, _, _ in self._waiting])  # waits for the device
        seconds = time.perf_counter() - self._since
        rates = {unit: count / seconds for unit, count in self._counts().items()}
        others = self._batch_metrics()
        losses = []
        with together():
            for (step, _, learning_rate, batch), metrics, own in zip(self._waiting, fetched, others, strict=True):
                values = {name: float(value) for name, value in metrics.items()}
                speed = {f"{unit}_per_second": round(rate, 1) for unit, rate in rates.items()}
                self._log(step, values | {"learning_rate": learning_rate} | own | speed)
                self._refuse(step, values, batch)
                losses.append(values["loss"])
            self._waiting = []
            self._flush()
        unit, rate = next(iter(rates.items()))
        return f"loss {np.mean(losses):.3f}, {rate:.0f} {unit}/s"

    def _counts(self) -> dict[str, int]:
        """The amounts in the queued batches, summed over the parts that the processes hold."""
        own = [self._objective.counts(batch) for *_, batch in self._waiting]
        parts = [counts for process in gather(own) for counts in process]
        return {unit: sum(counts[unit] for counts in parts) for unit in parts[0]}

    def _batch_metrics(self) -> list[dict[str, float]]:
        """The metrics of each queued batch, averaged over the processes' parts of it, which are equally large."""
        parts = gather([self._objective.batch_metrics(batch) for *_, batch in self._waiting])
        return [
            {name: sum(part[name] for part in batch) / len(batch) for name in batch[0]}
            for batch in zip(*parts, strict=True)
        ]

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one record of validation metrics immediately."""
        with together():
            self._log(step, metrics)
            self._flush()

    def validated(self, step: int) -> bool:
        """True if the log already held a validation after this step when it was opened."""
        return step in self._validated

    def resume(self) -> None:
        """Restart the rate clock, to exclude the time since the last flush (validation, checkpoint) from the rates."""
        if not self._waiting:
            self._since = time.perf_counter()

    def _close(self, tracker: Tracker) -> None:
        tracker.close(self._failed)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def _flush(self) -> None:
        for tracker in self._trackers:
            tracker.flush()

    def _refuse(self, step: int, values: Mapping[str, float], batch: Any) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                part = f"_host_{jax.process_index()}" if several() else ""
                path = self._folder / f"batch_of_step_{step}{part}.npz"
                save_batch(path, batch)
                raise UserError(
                    f"the {name} of step {step} is {values[name]}: its batch is in {path}; look for anomalies in "
                    "it, or start over in a new folder with a lower learning rate"
                )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = not (error is None or isinstance(error, Stopped))  # a run that was asked to stop has not failed
        self._open.close()


def save_batch(path: Path, batch: Any) -> None:
    """Write a batch as .npz, one array per leaf, named by its path, such as "condition.z"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(batch)
    arrays: Any = {".".join(str(key).strip(".") for key in path): np.asarray(leaf) for path, leaf in leaves}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())
