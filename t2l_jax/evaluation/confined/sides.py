"""The two processes: a test, and the program whose function it calls."""

import builtins
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, ModuleType
from typing import Any, NoReturn

from t2l_jax.evaluation.confined.walls import adopt_orphans, bind_to_parent, confine
from t2l_jax.evaluation.confined.wire import FAILED, PASSED, UNCONFINED, Peer


def main(level: str, seconds: str, *packages: str) -> NoReturn:
    """Start both, wait for the test, and end with its status. The task is on the test's standard input."""
    try:
        bind_to_parent()
        adopt_orphans()
    except (AttributeError, OSError):  # another system than Linux
        os._exit(UNCONFINED)
    there, back = os.pipe(), os.pipe()
    ends = {*there, *back}

    def start(side: Callable[[int, int], object], incoming: int, outgoing: int, stdin: int) -> int:
        try:
            child = os.fork()
            if child:
                return child
            os.dup2(stdin, 0)
            for end in ends - {incoming, outgoing}:
                os.close(end)
            confine(level, int(seconds), [*packages])
        except BaseException:
            os._exit(UNCONFINED)
        try:
            sys.path += packages
            sys.dont_write_bytecode = True
            side(incoming, outgoing)
        finally:
            os._exit(FAILED)

    program = start(_program, there[0], back[1], stdin=1)
    test = start(_test, back[0], there[1], stdin=0)
    for end in ends:
        os.close(end)
    os._exit(_end_of(test, program, int(seconds) + 2))


def _end_of(test: int, program: int, seconds: int) -> int:
    """The status of the test, which has so many seconds. Then no process is left, not even as a zombie."""

    def stop(*_: object) -> None:
        raise TimeoutError

    status, left = FAILED, {test, program}
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    with suppress(TimeoutError):
        status = os.waitstatus_to_exitcode(os.waitpid(test, 0)[1])
        left.remove(test)
    signal.alarm(0)
    for process in left:
        os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    return status if status in (PASSED, UNCONFINED) else FAILED


def _program(incoming: int, outgoing: int) -> None:
    peer = Peer(incoming, outgoing, open=True)

    def load(source: str, names: list[str]) -> dict[str, Any]:
        space = _main_module()
        exec(compile(source, "program.py", "exec"), space)
        return {name: space[name] for name in names if name in space}

    peer.export(load)
    peer.send("ready", None)
    peer.serve()


def _test(incoming: int, outgoing: int) -> None:
    peer = Peer(incoming, outgoing, open=False)
    with os.fdopen(0, "rb", closefd=False) as stdin:
        task = json.load(stdin)
    os.dup2(1, 0)
    peer.receive(missing=UNCONFINED)
    name = task["entry_point"]
    space = _main_module()
    exec(task["helpers"], space)
    kinds = {
        key: kind
        for key, kind in space.items()
        if getattr(kind, "__module__", "") == "__main__" and isinstance(kind, type)
    }
    raised = {key: kind for key, kind in kinds.items() if issubclass(kind, BaseException)}
    peer.errors |= raised
    kept = space.keys() - kinds.keys() | raised.keys()  # an object of another class lives in the program
    test = compile(task["test"], "test.py", "exec")
    wanted = [name, *{*_names(test)} - kept - {*dir(builtins)}]
    theirs = peer.remote(0)(task["source"], wanted)
    space.update((key, theirs[key]) for key in wanted if key in theirs)
    candidate = space[name]
    exec(test, space)
    space["check"](candidate)
    os._exit(PASSED)


def _main_module() -> dict[str, Any]:
    module = sys.modules["__main__"] = ModuleType("__main__")
    return vars(module)


def _names(code: CodeType) -> Iterator[str]:
    """The names that code looks up outside of its functions, among others."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
