"""Two sides of a speed comparison that take turns, each in a process of its own, and the last of a turn's calls counts.

A turn is two calls, a process's first one three: on a GPU our second step took 1.1 to 1.5 s, later ones a thirtieth.

Training repeats one step. After the other side's turn memory is cold, or a guest machine has handed it back to its
host: the step of oracle_speed.py that takes 3.7 s when repeated took 5.8 s then, and 7.2 s with both in one process.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

Turn = Callable[..., float]
OURS, OURS_NARROW = "t2l_jax, float32", "t2l_jax, narrow"
THEIRS, THEIRS_NARROW = "PyTorch + peft, float32", "PyTorch + peft, autocast to bfloat16"


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def side(make: Callable[..., Callable[..., Any]], *args: Any) -> Iterator[Turn]:
    """Yield a function that takes a turn of make(*args), made once in its process, and returns its last call's seconds.

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


@contextmanager
def four_sides(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any) -> Iterator[dict[str, Turn]]:
    """Yield the turns of ours(*args, narrow) and theirs(*args, narrow), both in float32 and narrow, by name."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(side(make, *args, narrow))
            for name, make, narrow in (
                (OURS, ours, False),
                (THEIRS, theirs, False),
                (OURS_NARROW, ours, True),
                (THEIRS_NARROW, theirs, True),
            )
        }


def print_ratios(times: Mapping[str, Sequence[float]]) -> None:
    """Print how many times as fast ours is, turn by turn: the median, with the smallest and the largest."""
    for what, mine, plain in (
        ("both in float32", OURS, THEIRS),
        ("ours narrow, PyTorch in float32", OURS_NARROW, THEIRS),
        ("both narrow", OURS_NARROW, THEIRS_NARROW),
    ):
        found = [slow / fast for slow, fast in zip(times[plain], times[mine], strict=True)]
        print(f"  ratio, {what}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)


def _serve(connection: Connection, make: Callable[..., Callable[..., Any]], args: tuple[Any, ...]) -> None:
    run, before = make(*args), 2
    while True:
        try:
            items = connection.recv()
        except EOFError:
            return
        for _ in range(before):
            run(*items)
        before = 1
        connection.send(timed(lambda items=items: run(*items)))
