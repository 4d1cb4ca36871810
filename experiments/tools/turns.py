"""Two sides of a speed comparison that take turns, each in a process of its own; the last call of a turn counts.

A turn is two calls, a process's first turn three: right after the other side's turn memory is cold, and the first steps
on a GPU take many times as long as later ones. Training repeats one step, so the warm step is what is timed.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

Turn = Callable[..., float]
OURS, OURS_BF16 = "t2l_jax, float32", "t2l_jax, bfloat16"
THEIRS, THEIRS_BF16 = "PyTorch + peft, float32", "PyTorch + peft, bfloat16 autocast"
RATIOS = (
    ("both in float32", OURS, THEIRS),
    ("ours in bfloat16, PyTorch in float32", OURS_BF16, THEIRS),
    ("both in bfloat16", OURS_BF16, THEIRS_BF16),
)


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
    """Yield, by name, the turns of ours(*args, bf16) and theirs(*args, bf16), both in float32 and in bfloat16."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(side(make, *args, bf16))
            for name, make, bf16 in (
                (OURS, ours, False),
                (THEIRS, theirs, False),
                (OURS_BF16, ours, True),
                (THEIRS_BF16, theirs, True),
            )
        }


def ratios(times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """How many times as fast ours is, turn by turn: median, smallest and largest."""
    rows = []
    for what, mine, plain in RATIOS:
        found = [slow / fast for slow, fast in zip(times[plain], times[mine], strict=True)]
        median, low, high = (round(value, 2) for value in (statistics.median(found), min(found), max(found)))
        rows.append({"times as fast": what, "median": median, "lowest": low, "highest": high})
    return rows


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
