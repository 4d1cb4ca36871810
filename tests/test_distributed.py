"""What starts several processes and what does not, and what they say to each other (here: one, with stand-ins)."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from t2l_jax import distributed
from t2l_jax.errors import UserError


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """The arguments of each start of JAX's service, which is not started."""
    calls: list[dict] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    for name in (
        *distributed.COUNTS,
        *distributed.LISTS,
        *distributed.ADDRESSES,
        "JAX_NUM_PROCESSES",
        "JAX_PROCESS_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("environment", [{}, {"SLURM_NTASKS": "1"}, {"TPU_WORKER_HOSTNAMES": "localhost"}])
def test_a_machine_of_its_own_starts_nothing(started, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.start("auto")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    distributed.start("off")
    assert started == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_NTASKS", "16"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("TPU_WORKER_HOSTNAMES", "t1v-0,t1v-1"),
        ("TPU_PROCESS_ADDRESSES", "a:8476,b:8476"),
        ("MEGASCALE_COORDINATOR_ADDRESS", "vm-0"),
    ],
)
def test_a_cluster_is_left_to_jax(started, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    distributed.start("auto")
    (arguments,) = started
    assert "coordinator_address" not in arguments
    assert arguments["heartbeat_timeout_seconds"] == distributed.HEARTBEAT_LIMIT


@pytest.mark.parametrize("stops", [True, False])
def test_work_that_does_not_stop_by_itself_is_ended_by_a_signal(started, monkeypatch, stops):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    before = signal.getsignal(signal.SIGINT)
    try:
        distributed.start(stops=stops)
        assert signal.getsignal(signal.SIGINT) == (before if stops else signal.SIG_DFL)
        assert jax.config.jax_enable_preemption_service is stops
    finally:
        signal.signal(signal.SIGINT, before)
        jax.config.update("jax_enable_preemption_service", True)


@pytest.mark.parametrize("setting", ["vm-0:1234", "auto"])
def test_an_address_takes_its_numbers_from_the_environment(started, monkeypatch, setting):
    for name, value in (("COORDINATOR_ADDRESS", "vm-0:1234"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv(f"JAX_{name}", value)
    distributed.start(setting)
    numbers = {"coordinator_address": "vm-0:1234", "num_processes": 4, "process_id": 3}
    assert started[0].items() >= numbers.items()


@pytest.mark.parametrize(
    ("setting", "environment", "message"),
    [
        ("on", {}, "'on' is not auto, off or HOST:PORT"),
        ("vm-0:", {}, "'vm-0:' is not auto, off or HOST:PORT"),
        ("vm-0:70000", {}, "'vm-0:70000' is not auto, off or HOST:PORT"),
        ("vm-0:1234", {}, "the environment variable JAX_NUM_PROCESSES is missing: set it to the number of processes"),
        ("vm-0:1234", {"NUM_PROCESSES": "2"}, "JAX_PROCESS_ID is missing: set it to the number of this one, from 0"),
        ("vm-0:1234", {"NUM_PROCESSES": "two", "PROCESS_ID": "0"}, "JAX_NUM_PROCESSES is two: set it"),
        ("vm-0:1234", {"NUM_PROCESSES": "2", "PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2, of 2 processes: count them"),
    ],
)
def test_what_cannot_be_started_is_refused(started, monkeypatch, setting, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(UserError, match=message):
        distributed.start(setting)
    assert started == []


def test_what_jax_refuses_is_one_line(started, monkeypatch):
    def refuse(**_):
        raise RuntimeError("called too late")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(UserError, match=r"cannot start with .*: called too late"):
        distributed.start()


@pytest.mark.slow
def test_processes_that_do_not_meet_end_in_one_line():
    """Port 9 (discard) of this machine: nobody answers there."""
    code = "from t2l_jax import distributed; distributed.start('localhost:9', limit=1)"
    environment = {**os.environ, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    environment["PYTHONPATH"] = str(Path(distributed.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    line = "t2l: error: --distributed: the processes of this run did not meet at localhost:9 in 1 s: start all of them"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(line)


@pytest.fixture
def others(monkeypatch):
    """Make this process one of several: what the others give to `gather` is what the test says, as JSON."""
    given: list = []

    def all_gather(own):
        data = [np.frombuffer(json.dumps(value).encode(), np.uint8) for value in given]
        if own.ndim == 0:
            return np.asarray([own, *map(len, data)])
        assert len(own) > max(map(len, data))
        return np.stack([own, *(np.pad(one, (0, len(own) - len(one))) for one in data)])

    monkeypatch.setattr(multihost_utils, "process_allgather", all_gather)
    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(given))
    return given


def test_alone_a_process_agrees_with_itself():
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.from_main([1]) == [1]
    distributed.agree({"a": 1})
    assert distributed.is_main()
    assert not distributed.several()
    with pytest.raises(UserError, match=r"^no$"), distributed.together():
        raise UserError("no")


def test_everyone_hears_everyone(others):
    others.extend([{"long": "ä" * 99}, 3])
    assert distributed.gather("short") == ["short", {"long": "ä" * 99}, 3]


def test_the_first_value_that_differs_is_named_with_its_host(others):
    others.append(["vm-1", {"jax": "0.10.2", "loop.seed": 3}])
    distributed.agree({"jax": "0.10.2", "loop.seed": 3})
    with pytest.raises(UserError, match=r'^jax is "0.10.2" on host 1 \(vm-1\), "0.10.1" on host 0 \(.*\): start the'):
        distributed.agree({"jax": "0.10.1", "loop.seed": 3})
    with pytest.raises(UserError, match=r"^read.tasks is null on host 1 \(vm-1\), true on host 0"):
        distributed.agree({"jax": "0.10.2", "loop.seed": 3, "read.tasks": True})


def test_an_error_of_one_is_an_error_of_all(others):
    others.extend([None, "the disk is full"])
    left = []
    with pytest.raises(UserError, match=r"^host 2: the disk is full$"), distributed.together():
        left.append("whole")
    with pytest.raises(UserError, match=r"^my own$"), distributed.together():
        raise UserError("my own")
    assert left == ["whole"]


def test_any_error_of_one_is_a_line_in_the_others(others):
    others.append("OSError: [Errno 5] Input/output error")
    with pytest.raises(UserError, match=r"^host 1: OSError: \[Errno 5\]"), distributed.together():
        pass
    with pytest.raises(ZeroDivisionError), distributed.together():
        raise ZeroDivisionError


def test_a_process_without_the_others_ends_in_one_line(others, monkeypatch, capsys):
    others.append(None)

    def closed(own):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer\nand more")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(multihost_utils, "process_allgather", closed)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="2"):
        distributed.barrier()
    line = (
        "t2l: error: --distributed: another process has ended, or cannot be reached: start all of them again (UNKNOWN"
    )
    assert capsys.readouterr().err == f"{line}: Gloo AllGather failed: Connection closed by peer)\n"


@pytest.fixture
def two(monkeypatch):
    """Runs a function of a process's number in two threads, which stand for two processes; returns both results."""
    said: dict[int, object] = {}
    meeting = threading.Barrier(2, timeout=60)

    def own_number():
        return int(threading.current_thread().name.rpartition("_")[2])

    def gather(value):
        said[own_number()] = json.dumps(value)
        meeting.wait()
        everyone = [json.loads(said[number]) for number in range(2)]
        meeting.wait()
        return everyone

    monkeypatch.setattr(distributed, "gather", gather)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", own_number)

    def run(function):
        with ThreadPoolExecutor(2, thread_name_prefix="process") as pool:
            return list(pool.map(lambda _: function(own_number()), range(2)))

    return run


@pytest.mark.parametrize(("meeting", "rounds"), [(0, [["a", 1], ["b"], ["c"], []]), (60, [["a", "b", "c", 1]])])
def test_side_by_side_everyone_gets_what_everyone_makes(two, monkeypatch, meeting, rounds):
    """However many items each has, and however often they meet."""
    monkeypatch.setattr(distributed, "MEETING", meeting)
    given = {0: "abc", 1: [1]}
    assert two(lambda number: list(distributed.side_by_side(given[number]))) == [rounds, rounds]


def test_side_by_side_an_error_of_one_ends_all_at_their_next_meeting(two, monkeypatch):
    monkeypatch.setattr(distributed, "MEETING", 0)
    made = []

    def work(number):
        for item in range(100):
            if number == 1 and item == 2:
                raise UserError("the disk is full")
            if number == 0:
                made.append(item)
            yield item

    def process(number):
        with pytest.raises(UserError) as error:
            list(distributed.side_by_side(work(number)))
        return str(error.value)

    assert sorted(two(process)) == ["host 1: the disk is full", "the disk is full"]
    assert made == [0, 1, 2]


def test_alone_each_item_comes_at_once():
    items = distributed.side_by_side(iter("ab"))
    assert [next(items), next(items), list(items)] == [["a"], ["b"], []]


def test_shares_are_disjoint_even_and_everything(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        shares.append(distributed.share("abcdefgh"))
    assert shares == ["adg", "beh", "cf"]


def test_what_the_main_process_opens_it_closes(others, monkeypatch):
    others.append(None)
    seen = []

    @distributed.contextmanager
    def opened():
        seen.append("open")
        yield
        seen.append("closed")

    with distributed.in_main(opened):
        assert seen == ["open"]
    assert seen == ["open", "closed"]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with distributed.in_main(opened):
        pass
    assert seen == ["open", "closed"]
