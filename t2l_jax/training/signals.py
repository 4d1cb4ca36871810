"""SIGTERM and the first SIGINT make a run stop at the end of its step, instead of killing the process.

Of several processes all stop after the same step, whichever of them gets the signal: JAX handles SIGTERM then.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jax.experimental import multihost_utils

from t2l_jax.distributed import several

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Holds the signal that asked the run to stop; None until one arrives."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record the signal. A second SIGINT raises KeyboardInterrupt immediately."""
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if several():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX lets the others know

    def after(self, step: int) -> signal.Signals | None:
        """The signal for which the run stops after this step, if any. To be called after each step."""
        if not several():
            return self.signal
        return (self.signal or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(step) else None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Handle signals during the block, then restore the old handlers. Does nothing outside the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    own = (signal.SIGINT,) if several() else STOPPING
    former = {number: signal.signal(number, request) for number in own}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
