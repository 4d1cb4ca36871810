"""Event files for TensorBoard, written synchronously: a kill loses what SummaryWriter has queued."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _without_pytorch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed, for an annotation; that takes more than a second."""
    modules: dict[str, Any] = sys.modules
    hidden = "torch" not in modules
    if hidden:
        modules["torch"] = None  # as Python marks what cannot be imported
    try:
        yield
    finally:
        if hidden:
            del modules["torch"]


with _without_pytorch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """A new event file of a run. TensorBoard then ignores events of earlier files after step `start`."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._put(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._put(step, summary=Summary(value=values))

    def flush(self) -> None:
        """Flush written events to disk."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _put(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))
