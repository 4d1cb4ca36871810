"""Two processes of four devices each train as one process of eight does, stop together, and go on exactly."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import hosts
import jax
import numpy as np
import pytest
from tiny_training import curves

from t2l_jax.sharding import make_mesh

pytestmark = pytest.mark.slow
TESTS = Path(hosts.__file__).parent


def start(function: str, folder: Path) -> list[subprocess.Popen]:
    """Two processes with four devices each that run a function of hosts.py."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = re.sub(r"device_count=\d+", "device_count=4", os.environ["XLA_FLAGS"])
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    processes = []
    for number in range(2):
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, "T2L_CACHE": str(folder / "cache")}
        environment |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        command = [sys.executable, str(TESTS / "hosts.py"), function, str(folder), str(port)]
        with (folder / f"{function}{number}").open("w") as output:
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    return processes


def said(function: str, folder: Path) -> list[str]:
    return [(folder / f"{function}{number}").read_text() for number in range(2)]


def line(output: str, word: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(word))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """The run on eight devices of this process; half of it is in of_eight."""
    half = hosts.replace(hosts.tiny_training.LOOP, stop_after=4)
    hosts.train(folder / "of_eight", make_mesh(fsdp=2), loop=half)
    hosts.train(folder / "alone", make_mesh(fsdp=2))
    return folder / "alone"


@pytest.fixture(scope="module")
def first(folder, alone) -> list[str]:
    """What the two processes print that train without a stop, and then are stopped."""
    statuses = [process.wait(300) for process in start("undisturbed", folder)]
    output = said("undisturbed", folder)
    assert statuses == [128 + signal.SIGTERM] * 2, "\n".join(output)
    return output


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Every number of two runs is the same, but for the last bits; there is one record of each step."""
    for own, wanted in zip(curves(one), curves(other), strict=True):
        assert own.keys() == wanted.keys()
        np.testing.assert_allclose([*own.values()], [*wanted.values()], rtol=tolerance, atol=tolerance)


def test_two_processes_train_as_one(folder, first, alone):
    assert_close(folder / "whole", alone, 1e-6)
    assert [line(output, "slots") for output in first] == ["slots: [0, 1, 2, 3]", "slots: [4, 5, 6, 7]"]
    sessions = json.loads((folder / "whole" / "environment.json").read_text())["sessions"]
    assert [session["devices"]["used"] for session in sessions] == [8]
