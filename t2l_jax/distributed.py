"""Several processes that run one program, such as one on each host of a pod: how they start, and what they do together.

Every process runs the same command. JAX gives each a number; process 0, the main one, writes what is written once. All
of them must reach each function below that talks to the others, in the same order, or they wait for each other.
"""

import importlib.util
import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t2l_jax.errors import UserError

START_LIMIT = 300  # seconds in which all processes must have found each other
HEARTBEAT_LIMIT = 100  # seconds without a sign of life after which a process counts as dead, and all end
SHUTDOWN_LIMIT = 60  # seconds that a process waits at its end for the others

# Variables that a cluster sets for each of several processes, and what their values look like then.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # numbers of processes
LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")  # several, with commas between them
ADDRESSES = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")


def start(setting: str = "auto", limit: float = START_LIMIT) -> None:
    """Join the other processes of this run, before anything is computed.

    auto: those of Slurm, Open MPI, Cloud TPU, or of the variable JAX_COORDINATOR_ADDRESS; elsewhere nothing is started.
    off: none. HOST:PORT: process 0 waits there for the others; the variables JAX_NUM_PROCESSES and JAX_PROCESS_ID say
    how many there are, and which this is. Raises UserError for a setting that is none of these. If the others are not
    found in `limit` seconds, the process ends, with one line and status 2.
    """
    if setting == "off" or (setting == "auto" and not _in_cluster()):
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS") if setting == "auto" else setting
    arguments: dict[str, Any] = {} if address is None else _arguments(address)
    where = address or "the cluster's coordinator"
    timer = threading.Timer(limit, _give_up, (where, limit))
    timer.daemon = True
    timer.start()
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
    print(
        f"t2l: error: --distributed: the processes of this run did not meet at {where} in {limit:.0f} s: start all of "
        "them, and check that each can reach this address",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def several() -> bool:
    """True if this is one of several processes."""
    return jax.process_count() > 1


def is_main() -> bool:
    """True in the process that writes what is written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """What each process gives, which must be JSON, in the order of their numbers."""
    if not several():
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(data), np.int32))
    padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # few sizes, since each is compiled
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


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
    """A block that no process leaves well unless all do: a UserError in one of them is raised in all."""
    own: UserError | None = None
    try:
        yield
    except UserError as error:
        own = error
    for number, message in enumerate(gather(own and str(own))):
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
