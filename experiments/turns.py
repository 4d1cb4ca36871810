"""Two sides of a speed comparison that take turns, each in a process of its own, and the second of two calls counts.

Training repeats one step. After the other side's turn memory is cold, or a guest machine has handed it back to its
host: the step of oracle_speed.py that takes 3.7 s when repeated took 5.8 s then, and 7.2 s with both in one process.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Turn = Callable[..., float]


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def side(make: Callable[..., Callable[..., Any]], *args: Any) -> Iterator[Turn]:
    """Yield a function that calls make(*args), made once, twice in its process and returns the seconds of the second.

    `make`, its arguments and those of the function travel by pickle. Raises RuntimeError where the process ends early.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, args), daemon=True)
    process.start()
    there.close()

    def turn(*items: Any) -> float:
        try:
            here.send(items)
            return here.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process of {make.__module__}.{make.__qualname__} ended") from error

    try:
        yield turn
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, make: Callable[..., Callable[..., Any]], args: tuple[Any, ...]) -> None:
    run = make(*args)
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        run(*items)
        connection.send(timed(lambda items=items: run(*items)))
