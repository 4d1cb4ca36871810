"""Several processes that run one program, such as one on each host of a pod: how they start, and what they do together.

Every process runs the same command. JAX gives each a number; process 0, the main one, writes what is written once. All
of them must reach each function below that talks to the others, in the same order, or they wait for each other.
"""

import importlib.util
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from t2l_jax.errors import UserError

START_LIMIT = 300  # seconds in which all processes must have found each other
HEARTBEAT_LIMIT = 100  # seconds without a sign of life after which a process counts as dead, and all end
SHUTDOWN_LIMIT = 60  # seconds that a process waits at its end for the others
MEETING = 10  # seconds of work on its own share after which a process waits for the others

# Variables that a cluster sets for each of several processes, and what their values look like then.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # numbers of processes
LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")  # several, with commas between them
ADDRESSES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")

T = TypeVar("T")


def start(setting: str = "auto", limit: float = START_LIMIT, *, stops: bool = True) -> None:
    """Join the other processes of this run, before anything is computed.

    auto: those of Slurm, Open MPI, Cloud TPU, or of the variable JAX_COORDINATOR_ADDRESS; elsewhere nothing is started.
    off: none. HOST:PORT: process 0 waits there for the others; the variables JAX_NUM_PROCESSES and JAX_PROCESS_ID say
    how many there are, and which this is. Raises UserError for a setting that is none of these. If the others are not
    found in `limit` seconds, the process ends, with one line and status 2. Unless the work `stops` by itself after a
    signal, as training does, a signal ends the process at once.
    """
    if setting == "off" or (setting == "auto" and not _in_cluster()):
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS") if setting == "auto" else setting
    arguments: dict[str, Any] = {} if address is None else _arguments(address)
    where = address or "the cluster's coordinator"
    timer = threading.Timer(limit, _give_up, (where, limit))
    timer.daemon = True
    timer.start()
    jax.config.update("jax_enable_preemption_service", stops)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(limit) + 60,  # the timer comes first: JAX would abort the process
            heartbeat_timeout_seconds=HEARTBEAT_LIMIT,
            shutdown_timeout_seconds=SHUTDOWN_LIMIT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--distributed: cannot start with {where}: {error}") from error
    finally:
        timer.cancel()
    if not stops:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an orderly end would wait for the others


def _in_cluster() -> bool:
    """True if the environment says that this is one of several processes."""
    found = os.environ.get
    several = any(found(name, "1") != "1" for name in COUNTS) or any("," in found(name, "") for name in LISTS)
    # On a machine without TPUs, JAX sets this variable when it is imported. A TPU's host asks Google's metadata.
    tpu = "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu") is not None
    return several or tpu or any(name in os.environ for name in ADDRESSES)


def _arguments(address: str) -> dict[str, Any]:
    """What JAX needs to know of a coordinator at an address. Raises UserError that names what is missing."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--distributed: {address!r} is not auto, off or HOST:PORT")
    numbers = {}
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        text = os.environ.get(name)
        if text is None and _launched():  # then JAX asks the launcher
            continue
        if text is None or not text.isdecimal():
            raise UserError(
                f"--distributed {address}: the environment variable {name} is {text or 'missing'}: set it to "
                f"{'the number of processes' if name == 'JAX_NUM_PROCESSES' else 'the number of this one, from 0'}"
            )
        numbers[name] = int(text)
    count, own = numbers.get("JAX_NUM_PROCESSES"), numbers.get("JAX_PROCESS_ID")
    if count is not None and own is not None and own >= count:
        raise UserError(f"--distributed {address}: JAX_PROCESS_ID is {own}, of {count} processes: count them from 0")
    return {"coordinator_address": address, "num_processes": count, "process_id": own}


def _launched() -> bool:
    return any(name in os.environ for name in COUNTS)


def _give_up(where: str, limit: float) -> None:
    """End this process, which waits in a call that nothing interrupts."""
    _end(
        f"the processes of this run did not meet at {where} in {limit:.0f} s: start all of them, and check that each "
        "can reach this address"
    )


def _end(reason: str) -> NoReturn:
    """End this process at once: JAX's own end would wait for the other processes and then abort."""
    print(f"t2l: error: --distributed: {reason}", file=sys.stderr, flush=True)
    os._exit(2)


def several() -> bool:
    """True if this is one of several processes."""
    return jax.process_count() > 1


def is_main() -> bool:
    """True in the process that writes what is written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What each process gives, which must be JSON, in the order of their numbers.

    If another process has ended, this one ends, too, with one line and status 2.
    """
    if not several():
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    try:
        lengths = multihost_utils.process_allgather(np.asarray(len(data), np.int32))
        padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # few sizes, since each is compiled
        padded[: len(data)] = data
        rows = np.asarray(multihost_utils.process_allgather(padded))
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # what JAX makes of a lost connection
        _end(f"another process has ended, or cannot be reached: start all of them again ({_first_line(error)})")
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def from_main(value: Any) -> Any:
    """What the main process gives, which must be JSON."""
    return gather(value if is_main() else None)[0]


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def agree(values: Mapping[str, Any]) -> None:
    """Raise UserError in all processes unless they give the same values; it names the first that differs."""
    everyone = gather([platform.node(), dict(values)])
    here, first = everyone[0]
    for number, (node, own) in enumerate(everyone):
        for name in sorted(first.keys() | own.keys()):
            if own.get(name) != first.get(name):
                raise UserError(
                    f"{name} is {_short(own.get(name))} on host {number} ({node}), {_short(first.get(name))} on host 0 "
                    f"({here}): start the same command, with the same code and files, on every host"
                )


def _short(value: Any) -> str:
    return f"{json.dumps(value):.80}"


@contextmanager
def together() -> Iterator[None]:
    """A block that no process leaves well unless all do: an error in one of them is a UserError in the others."""
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    known = isinstance(own, UserError)
    for number, message in enumerate(gather(own and (str(own) if known else f"{type(own).__name__}: {own}"))):
        if own is None and message is not None:
            raise UserError(f"host {number}: {message}")
    if own is not None:
        raise own


@contextmanager
def in_main(open_context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """The context manager, entered by the main process alone. A UserError on entering is raised in all."""
    with ExitStack() as stack:
        with together():
            if is_main():
                stack.enter_context(open_context())
        yield


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's share of items that all processes have in the same order."""
    return items[jax.process_index() :: jax.process_count()]


def side_by_side(work: Iterable[T]) -> Iterator[list[T]]:
    """Run through each process's own iterable; yield what those of all processes gave, to all of them.

    They meet every MEETING seconds, so an error in one of them soon ends all. What they give must be JSON. A process
    alone yields each item as it comes.
    """
    if not several():
        yield from ([item] for item in work)
        return
    rest, own = iter(work), True
    anyone = True
    while anyone:
        given: list[T] = []
        with together():
            until = time.monotonic() + MEETING
            for item in rest:
                given.append(item)
                if time.monotonic() >= until:
                    break
            else:
                own = False
        rounds = gather([own, given])
        yield [item for _, items in rounds for item in items]
        anyone = any(more for more, _ in rounds)
