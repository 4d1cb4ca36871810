"""One look for every progress bar."""

import sys
import threading
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 30.0  # seconds from one line to the next where there is no terminal
PERIOD = 600.0  # seconds over which the speed is estimated: steps of training may take ten each


def progress_bar(hidden: bool = False) -> Progress:
    """A bar with what is done, the time left and the field `rate`, on stderr; in a log, lines. Nothing if hidden."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    options: Any = {"console": console, "speed_estimate_period": PERIOD}
    if hidden or console.is_terminal:
        return Progress(*columns, **options, disable=hidden)
    return _Lines(**options, disable=True)


class _Lines(Progress):
    """For logs: every EVERY seconds a line for what is under way."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._left.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._left.wait(EVERY):
            for task in self.tasks:
                if not task.finished:
                    print(_line(task), file=sys.stderr, flush=True)


def _line(task: Task) -> str:
    """What the columns of the bar show, in words."""
    columns = TimeElapsedColumn(), TimeRemainingColumn()
    passed, left = (column.render(task).plain for column in columns)
    rate = f", {task.fields['rate']}" if task.fields.get("rate") else ""
    return f"{task.description}: {task.completed:.0f} of {task.total or 0:.0f} in {passed}, {left} left{rate}"
