import threading
import time

import pytest

from t2l_jax.training.loader import prefetch


def test_items_come_in_order_and_are_made_ahead_but_not_far():
    made = []
    with prefetch(lambda n: made.append(n) or n * n, range(3, 30), ahead=2) as items:
        assert next(items) == 9
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert made == [3, 4, 5, 6]  # taken, two in the queue, one in hand
        assert list(items) == [n * n for n in range(4, 30)]


def test_an_exception_comes_up_in_its_place():
    def make(n: int) -> int:
        if n == 2:
            raise ValueError("the file is gone")
        return n

    found = []
    with prefetch(make, range(9)) as items, pytest.raises(ValueError, match="the file is gone"):
        found.extend(item for item in items)
    assert found == [0, 1]


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with prefetch(lambda n: n, iter(int, 1)) as items:
        next(items)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_nothing_to_make():
    with prefetch(lambda n: n, range(0)) as items:
        assert list(items) == []
