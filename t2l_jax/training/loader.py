"""Prefetching of batches on a thread, so that the device does not wait for the host."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetch(make: Callable[[int], Item], numbers: Iterable[int], ahead: int = 2) -> Iterator[Iterator[Item]]:
    """Yield an iterator over make(n) for each n, in order, computed on a thread up to `ahead` items in advance.

    An exception in `make` is raised by the iterator in place of that item. Leaving the block joins the thread.
    """
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
    left = threading.Event()
    end = object()

    def work() -> None:
        try:
            for n in numbers:
                item = make(n)
                if left.is_set():
                    return
                made.put((item, None))
            made.put((end, None))
        except BaseException as error:  # whatever it is, the thread that asked for the item must see it
            made.put((end, error))

    def items() -> Generator[Item]:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        left.set()
        while thread.is_alive():  # make room for its pending item, so that it sees the request to stop
            try:
                made.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()
