"""Starts the two processes of a run."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def start(folder: Path, name: str, script: str, *arguments: str, count: int = 2) -> list[subprocess.Popen]:
    """Processes of four devices each that run a script of this folder; what they say is in folder/name0, name1, ...

    In the arguments, {number} is the number of the process and {port} a free port, for the coordinator.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"])
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    processes = []
    for number in range(count):
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "T2L_CACHE": str(folder / "cache")}
        environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
        own = [argument.format(number=number, port=port) for argument in arguments]
        with (folder / f"{name}{number}").open("w") as output:
            command = [sys.executable, str(TESTS / script), *own]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=output))
    return processes


def said(folder: Path, name: str) -> list[str]:
    return [(folder / f"{name}{number}").read_text() for number in range(2)]
