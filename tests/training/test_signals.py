import os
import signal
import threading

import pytest

from t2l_jax.training import signals
from t2l_jax.training.signals import stop_request


def handlers() -> list:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = handlers()
    with stop_request() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert handlers() == before


def test_a_second_interrupt_interrupts():
    before = handlers()
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_another_thread_leaves_the_handlers_alone():
    before, seen = handlers(), []

    def work() -> None:
        with stop_request() as request:
            seen.append((request.signal, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_of_several_processes_jax_decides_after_which_step_they_stop(monkeypatch):
    """An interrupt becomes the SIGTERM that JAX waits for, whose handler stays."""
    monkeypatch.setattr(signals, "several", lambda: True)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", lambda step: step == 3)
    seen = []
    former = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with stop_request() as request:
            assert request.after(3) == signal.SIGTERM  # another process has it
            os.kill(os.getpid(), signal.SIGINT)
            assert [request.after(step) for step in (2, 3)] == [None, signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, former)
    assert seen == [signal.SIGTERM]
