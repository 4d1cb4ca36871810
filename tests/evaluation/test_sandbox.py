"""Right and wrong programs, what may cross between test and program, and attempts to cheat or to do harm."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent

import pytest
from sandbox_attempts import BEFORE, CHEATS, HARM, READS

from t2l_jax.errors import UserError
from t2l_jax.evaluation import sandbox
from t2l_jax.evaluation.confined.wire import FAILED, PASSED, UNCONFINED
from t2l_jax.evaluation.sandbox import LEVELS, Program, passes, program

PROMPT = 'from typing import List\n\ndef add(a: int, b: int) -> int:\n    """ Add. """\n'
TEST = "def check(candidate):\n    assert abs(candidate(2, 3) - 5) < 1 and candidate(2, 3) == 5\n"
# Python and the package may lie where only root can go, so they are mounted elsewhere.
AS_NOBODY = """
place=$1
mount -t tmpfs tmpfs $place
mkdir $place/python $place/root
mount --bind $2 $place/python
mount --bind $3 $place/root
shift 3
cd /
exec setpriv --reuid=65534 --regid=65534 --clear-groups $place/python/bin/python3 "$@"
"""


def body(text: str) -> Program:
    """A program whose function has this body, to be tested with TEST."""
    return Program(f"def add(a, b):\n{indent(text, '    ')}\n", "", TEST, "add")


def judged(test: str, answer: str, prompt: str = "", name: str = "f") -> bool:
    """Whether a function passes the lines of a test."""
    return passes(program(prompt, answer, f"def check({name}):\n{indent(test, '    ')}\n", name))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return a + b", True),
        ("    return a - b", False),
        ("    return a +", False),
        ("def add(a, b):\n    return a + b", True),
        ("Here it is:\n```python\ndef add(x: List, y):\n    return x + y\n```\nGood luck!", True),
        ("```\n    return a + b\n```", True),
        ("    return a + b\n\nprint('x' * 10**7)", True),
    ],
)
def test_an_answer_passes_where_its_function_does(answer, right):
    assert passes(program(PROMPT, answer, TEST, "add")) == right


def test_a_whole_function_finds_what_stands_before_it_in_the_prompt():
    helped = "import math\n\ndef half(x):\n    return x / 2\n\ndef add(a, b):\n    ...\n"
    answer = "def add(a, b):\n    return math.floor(2 * half(a + b))"
    assert passes(program(helped, answer, TEST, "add"))
    asked = "Complete this function:\n\nimport math\n\ndef add(a, b):\n    ...\n"
    assert passes(program(asked, "def add(a, b):\n    return math.floor(a + b)", TEST, "add"))
    prose = "Write a function that gets\nfrom two numbers one.\nimport math\n"
    assert passes(program(prose, "def add(a, b):\n    return math.floor(a + b)", TEST, "add"))


def test_a_prompt_may_be_fenced_or_end_without_a_new_line():
    fenced = f"Complete it:\n```python\n{PROMPT}```\nNothing else."
    assert passes(program(fenced, "    return a + b", TEST, "add"))
    assert passes(program(PROMPT.rstrip(), "    return a + b", TEST, "add"))
    answer = "First\n```text\nadd them\n```\nthen\n```python3\ndef add(a, b):\n    return a + b\n```"
    assert passes(program(fenced, answer, TEST, "add"))


VALUES = """
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from math import inf
values = [None, True, 0, -1, 10**5000, 1.5, -inf, 1e-300, "a\\ud800\\n", b"\\x00\\xff", bytearray(b"x"), 2 - 3j,
    range(2, 9, 3), [], [[1], (2, [3])], (), ((),), set(), {1, (2,)}, frozenset({frozenset()}), {},
    {1: "a", (1, 2): [3]}, Counter("aab"), OrderedDict(a=1), defaultdict(int, {1: 2}), deque([1, 2]),
    namedtuple("P", "x y")(1, 2), Fraction(1, 3), Decimal("0.10"), date(2024, 2, 29), timedelta(days=1, microseconds=3),
    int, ValueError, inf]
"""


def test_values_come_back_as_they_went():
    test = f"{VALUES}\nfor value in values:\n    back = f(value)\n    assert back == value, value"
    assert judged(
        f"{test}\nassert repr(f(-0.0)) == '-0.0' and f(f(inf) - inf) != 0 and f(True) is True", "def f(x): return x"
    )
    assert judged(f"{VALUES}\nassert f() == values", f"{VALUES}\ndef f(): return values")
    assert not judged("assert f() == [1]", "def f(): return (1,)")
    assert not judged("assert f() is True", "def f(): return 1")


def test_what_a_function_does_to_its_arguments_is_seen():
    test = """
inner = [2, 1]
given, table = [inner, inner, [3]], {"a": {1}}
result = f(given, table=table)
assert result is given and inner == [1, 2, 9] and given == [[3], inner, inner] and given[1] is inner
assert table == {"b": {1, 2}}
cycle = []
cycle.append(cycle)
assert g(cycle) is cycle and g([]) is not g([])
"""
    answer = """
def f(x, table):
    x[0].sort(); x[1].append(9); x.reverse(); table["b"] = table.pop("a"); table["b"].add(2)
    return x
def g(x): return x
"""
    assert judged(test, answer)
    assert not judged(test, answer.replace("return x\ndef g", "return list(x)\ndef g"))


def test_exceptions_arrive_by_name():
    test = """
for kind in (ValueError, ZeroDivisionError, KeyError, SystemExit, StopIteration):
    try:
        f(kind)
    except (kind, RuntimeError) as error:  # StopIteration would end a loop of the test
        assert type(error) is (RuntimeError if kind is StopIteration else kind) and error.args
    else:
        assert False
try:
    f(Exception)
except Bad as error:
    assert str(error) == "7"
"""
    prompt = "class Bad(Exception): pass\n\ndef f(kind):\n"
    answer = "    if kind is Exception:\n        raise Bad(7)\n    raise kind('x')"
    assert judged(test, answer, prompt)
    assert not judged("try:\n    f()\nexcept Exception:\n    pass", "import os\ndef f(): os._exit(42)")
    assert not judged("assert all(map(f, [1, 2]))", "def f(x): raise StopIteration")


def test_other_objects_stay_in_the_program():
    """Generators, objects and their attributes, functions in both directions."""
    assert judged(
        "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sorted(f(2))", "def f(n): yield from range(n)"
    )
    tree = "class Node:\n    def __init__(self, x): self.x, self.left = x, None\n    def __len__(self): return 4\n"
    test = "root = Node(1)\nroot.left = Node(2)\nassert f(root) == 3 and root.left.x == 2 and len(root) == 4"
    for prompt, before in ((f"{tree}\ndef f(node):\n", ""), ("", tree)):
        assert judged(test, f"{before}def f(node):\n    return node.x + node.left.x", prompt)
    assert judged(
        "assert f(lambda x: x + 1, [1, 2]) == [2, 3] and f(str, [1]) == ['1']", "def f(g, x): return [*map(g, x)]"
    )
    assert judged("assert f(2)(3) == 6", "def f(a): return lambda b: a * b")
    assert not judged("assert f(3)", "class Empty:\n    def __bool__(self): return False\ndef f(n): return Empty()")


def test_a_test_uses_the_helpers_of_the_prompt_not_those_of_the_answer():
    prompt = "import math\ndef twice(x):\n    return 2 * x\n\ndef f(x):\n"
    test = "assert twice(f(4)) == 4 and math.isqrt(f(9)) == 2"
    assert judged(test, "    return x // 2", prompt)
    assert not judged(test, "    return 0\ndef twice(x):\n    return 4\nmath.isqrt = lambda x: 2", prompt)
    assert judged(
        "assert half(f(4)) == 4 and math.pi > 3", "import math\ndef half(x): return x / 2\ndef f(x): return 2 * x"
    )


def test_a_program_has_the_imports_of_the_test_and_installed_packages():
    assert passes(
        program("", "def f(x): return math.floor(x)", "import math\ndef check(f):\n    assert f(1.5) == 1", "f")
    )
    numpy = "import numpy as np\ndef f(x):\n    return np.sum(x)"
    assert judged("assert f([1, 2]) == 3 and type(f([1])) is int", numpy)


def test_what_needs_no_network_passes():
    """An event loop has a pair of sockets, and libraries make classes of them."""
    assert passes(body("import asyncio\nreturn asyncio.run(asyncio.sleep(0, a + b))"))
    assert passes(body("import ssl, http.client, urllib.request, socketserver\nreturn a + b"))
    assert passes(
        body("from concurrent.futures import ThreadPoolExecutor as T\nreturn T().submit(lambda: a + b).result()")
    )


def test_a_folder_in_memory_can_be_written_where_there_are_namespaces(monkeypatch):
    if sandbox.level() != "namespaces":
        pytest.skip(f"no namespaces here: {sandbox.level()}")
    write = body("import pathlib\np = pathlib.Path('x')\np.write_text('5')\nreturn int(p.read_text())")
    assert passes(write)
    monkeypatch.setattr(sandbox, "level", lambda: "filter")
    assert not passes(write)


@pytest.fixture
def user(request, monkeypatch, tmp_path_factory):
    """Programs run under our user, and under one without rights if that is root."""
    if request.param == "as we are":
        return
    if os.getuid():
        pytest.skip("we are an ordinary user: the other half of these tests is this one")
    place = Path("/run") if os.access("/run", os.W_OK) else tmp_path_factory.mktemp("place")
    here = ["unshare", "--mount", "sh", "-ec", AS_NOBODY, "sh", str(place), sys.base_prefix, sandbox._ROOT]
    if subprocess.run([*here, "-ISc", "pass"], check=False).returncode:
        pytest.skip("an ordinary user cannot be tried: mounts or setpriv are refused")
    python = tmp_path_factory.mktemp("python") / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(here)} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sandbox, "_ROOT", str(place / "root"))


@pytest.fixture
def outside(monkeypatch):
    """What a program could reach if it could: files, sockets and servers of this machine."""
    monkeypatch.setenv("T2L_SECRET", "word")
    with tempfile.TemporaryDirectory() as name:  # one that every user may enter
        yield from _outside(Path(name))


def _outside(tmp_path):
    tmp_path.chmod(0o755)
    for name in ("mine", "secret"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o666)
    names = {"OUTSIDE": str(tmp_path), "PID": os.getpid(), "HERE": __file__}
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        for one, place in (
            (unix, str(tmp_path / "socket")),
            (abstract, f"\0t2l-{os.getpid()}"),
            (datagrams, str(tmp_path / "datagrams")),
        ):
            one.bind(place)
        for one in (unix, abstract):
            one.listen()
        yield names | {"PORT": server.getsockname()[1]}
        for one in (server, unix, abstract, datagrams):
            one.settimeout(0)
            with pytest.raises(BlockingIOError):
                one.recv(1) if one is datagrams else one.accept()
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datagrams", "mine", "secret", "socket"]
    assert not Path("/dev/shm/t2l-made").exists()


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


COMBINATIONS = [("as we are", level) for level in LEVELS] + [
    ("ordinary user", "namespaces"),
    ("ordinary user", "filter"),
]


@pytest.mark.parametrize(("user", "level"), COMBINATIONS, indirect=["user"])
def test_no_attempt_succeeds(level, user, outside, tmp_path, monkeypatch):
    mark = tmp_path / "site-packages"  # in the command line of each process
    monkeypatch.syspath_prepend(str(mark))
    if sandbox._run(body("return a + b"), 5, level) == UNCONFINED:
        pytest.skip(f"this system refuses {level}")
    monkeypatch.setattr(sandbox, "level", lambda: level)
    before = BEFORE + "".join(f"{name} = {value!r}\n" for name, value in outside.items())
    harm = {
        name: body(f"{text}\nreturn a + b") for name, text in HARM.items() if level != "filter" or name not in READS
    }
    programs = {name: Program(text, "", TEST, "add") for name, text in CHEATS.items()} | harm
    programs = {name: replace(one, source=before + one.source) for name, one in programs.items()}
    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(programs, pool.map(partial(passes, seconds=5), programs.values()), strict=True))
    assert [name for name, passed in results.items() if passed] == []
    assert passes(body("return a + b"))
    assert not any(str(mark) in line for line in command_lines())


@pytest.fixture
def crowd():
    """Seventy tasks of the ordinary user."""
    sleepers = "for n in $(seq 70); do sleep 600 & done; echo; wait"
    user = None if os.getuid() else 65534
    with subprocess.Popen(["/bin/sh", "-c", sleepers], user=user, stdout=-1, start_new_session=True, cwd="/") as shell:
        assert shell.stdout.readline() == b"\n"
        yield
        os.killpg(shell.pid, signal.SIGKILL)


@pytest.mark.parametrize("user", ["as we are" if os.getuid() else "ordinary user"], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_what_else_a_user_runs_leaves_a_program_its_threads(level, user, crowd, monkeypatch):
    if sandbox._run(body("return a + b"), 5, level) == UNCONFINED:
        pytest.skip(f"this system refuses {level}")
    monkeypatch.setattr(sandbox, "level", lambda: level)
    pool = "from concurrent.futures import ThreadPoolExecutor as T\n"
    assert passes(body(f"{pool}return T(1).submit(lambda: a + b).result()"))


def test_what_has_no_end_is_ended():
    """Those that sleep take three seconds, so all run side by side."""
    sleeping = ["import time; time.sleep(60)", "import signal\nsignal.pthread_sigmask(0, range(1, 65))\nsignal.pause()"]
    busy = [
        "while True: pass",
        "while True: print('x' * 1000)",
        "import os\nwhile True:\n    for n in range(3, 5): os.write(n, b'x' * 1000)",
    ]
    runs = [(text, level) for level in LEVELS for text in sleeping] + [(text, sandbox.level()) for text in busy]
    with ThreadPoolExecutor(len(runs)) as pool:
        assert PASSED not in pool.map(lambda run: sandbox._run(body(run[0]), 1, run[1]), runs)


def test_a_test_is_behind_the_same_walls(outside):
    for text in ("import os\nos.fork()", f"open('{outside['OUTSIDE']}/made', 'w')", "import socket\nsocket.socket()"):
        assert not judged(f"{text}\nassert f() == 1", "def f(): return 1")
    assert not judged("import os\nos._exit(0)", "def f(): return 1")


def test_without_walls_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_run", lambda program, seconds, level: UNCONFINED)
    with pytest.raises(UserError, match="this system cannot confine programs"):
        sandbox.level.__wrapped__()
    monkeypatch.setattr(sandbox, "level", lambda: "filter")
    with pytest.raises(UserError, match="could not be confined"):
        passes(body("return 5"))


def test_the_next_level_is_taken_where_one_is_refused(monkeypatch):
    run, refused = sandbox._run, {"namespaces"}
    monkeypatch.setattr(sandbox, "_run", lambda *args: UNCONFINED if args[2] in refused else run(*args))
    assert sandbox.level.__wrapped__() in ("landlock", "filter")
    refused.add("landlock")
    assert sandbox.level.__wrapped__() == "filter"


def test_a_slow_probe_is_repeated_and_leads_to_no_weaker_level(monkeypatch):
    def level(*statuses):
        left = iter(statuses)
        monkeypatch.setattr(sandbox, "_run", lambda *_: next(left))
        return sandbox.level.__wrapped__()

    assert level(FAILED, PASSED) == "namespaces"
    assert level(FAILED, UNCONFINED, -9, PASSED) == "landlock"
    for twice in (FAILED, FAILED), (FAILED, -9), (UNCONFINED, FAILED, FAILED):
        with pytest.raises(UserError, match=r"did not pass, twice, at the level '(namespaces|landlock)'.*too busy"):
            level(*twice)


def test_an_unreadable_test_is_not_passed():
    right = body("return a + b")
    assert not passes(replace(right, test="def check(candidate:"))
    assert not passes(replace(right, test="x = 1"))
    assert not passes(replace(right, helpers="1 / 0"))
    assert not passes(replace(right, entry_point="other"))
