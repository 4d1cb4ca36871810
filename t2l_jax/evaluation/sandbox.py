"""Whether a program that a model wrote passes its test: two processes that can do nothing but compute.

Program and test run apart (`confined/`), joined by two pipes over which plain data goes. The verdict is the exit status
of the test's process, which the program cannot reach: it passes only if its function gives right values. At every level
a filter of system calls (seccomp) leaves no other processes, sockets, signals, tracing or mounts. Memory (1 GiB), time
and open files are limited, threads by that memory alone where they would be counted with all others of the user (an
ordinary one, without namespaces). Nothing outlives a call of `passes`, and no files are left, as none are made. The
levels differ in what else stands before a program's files:

| level | a program reads | and writes | what hides the rest |
|---|---|---|---|
| namespaces | Python, its packages, /usr, /lib | 16 MiB in memory | mounts, processes, network, IPC of its own |
| landlock | the same; it sees that other files exist | nothing | Landlock (Linux 5.13) |
| filter | what you may read: the answers too, in files and perhaps in our memory | nothing | nothing |

Root's programs run as a user without rights; where only root may read Python's files, as root without root's rights.
Without such a filter (another system than Linux, another machine than x86-64 or ARM64) programs are not run.

What this does not do: protect from faults of the kernel; hide the time that passes; judge names that a test takes from
the answer instead of the prompt, which the program decides. A test sees plain data, exceptions by name, and of other
objects what their attributes and iteration give; such an object is equal to nothing else. What a test does to modules
(a seed, `sys.stdout`) does not reach the program, and objects of the test's own classes cannot be handed to it.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Timer

from t2l_jax.errors import UserError
from t2l_jax.evaluation.confined.wire import PASSED, UNCONFINED

SECONDS = 10
SCORING = 2  # raise it with whatever changes a program's score: answers scored by another version are asked again
LEVELS = {
    "namespaces": "programs ran in namespaces of their own, behind a filter of system calls",
    "landlock": "programs ran behind Landlock and a filter of system calls: this system refused namespaces",
    "filter": "programs ran behind a filter of system calls alone and could read files, the answers too: "
    "this system refused namespaces and Landlock",
}
_ROOT = str(Path(__file__).parents[2])
_START = """
import sys
sys.path.append(sys.argv[1])
from t2l_jax.evaluation.confined.sides import main
sys.path.pop()
main(*sys.argv[2:])
"""
_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Program:
    """A program and its test."""

    source: str
    helpers: str
    """What stands in the prompt before the function: the test may use it, whatever the answer makes of it."""
    test: str
    """Python source that defines `check`, which gets the function."""
    entry_point: str
    """The function's name."""


def program(prompt: str, answer: str, test: str, entry_point: str) -> Program:
    """The Python source to run, and its test.

    The answer either continues the prompt's function or contains the whole function; both prompt and answer may use
    fenced blocks. A whole function is preceded by the code before it in the prompt (imports, other functions), or by
    its import lines if that text is prose.
    """
    head = re.compile(rf"^def {re.escape(entry_point)}\b", re.MULTILINE)
    blocks = _FENCE.findall(answer)
    code = next((block for block in blocks if head.search(block)), (*blocks, answer)[0])
    asked = next((block for block in _FENCE.findall(prompt) if head.search(block)), prompt)
    start = head.search(asked)
    before = _before(asked[: start.start()]) if start else _imports(asked)
    function = f"{before}\n{code}" if head.search(code) else asked.rstrip("\n") + "\n" + code
    return Program(f"{function}\n\n{_imports(test)}\n", before, test, entry_point)


def _before(text: str) -> str:
    """The text before a function if it is valid Python, else its import lines."""
    return text if _is_program(text) else _imports(text)


def _imports(text: str) -> str:
    """The import statements of a text, one per line; prose that begins like one is left out."""
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    return "\n".join(line for line in lines if _is_program(line))


def _is_program(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def passes(program: Program, seconds: int = SECONDS) -> bool:
    """True if `check` returns within `seconds`. Raises UserError where programs cannot be confined."""
    status = _run(program, seconds, level())
    if status == UNCONFINED:
        raise UserError("a program could not be confined as others were: the system is out of processes or memory")
    return status == PASSED


@cache
def level() -> str:
    """The strongest of LEVELS that this system allows. Raises UserError if it allows none, or if one cannot be tried.

    A probe that is too slow on a busy machine says nothing about the system, so it leads to no weaker level.
    """
    probe = Program("def one(): return 1", "", "def check(one): assert one() == 1", "one")
    for name in LEVELS:
        status = _run(probe, SECONDS, name)
        if status not in (PASSED, UNCONFINED):
            status = _run(probe, SECONDS, name)
        if status == PASSED:
            return name
        if status != UNCONFINED:
            raise UserError(
                f"--run-code: a program of one line did not pass, twice, at the level {name!r}: this machine is "
                "too busy or out of memory; try again later, or leave --run-code out"
            )
    raise UserError(
        "--run-code: this system cannot confine programs, which takes Linux on x86-64 or ARM64 and a kernel with "
        "seccomp; run the evaluation on another system, or leave --run-code out"
    )


def _run(program: Program, seconds: int, level: str) -> int:
    """The exit status of the test's process, or another one if it was ended."""
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START, _ROOT, level, str(seconds), *packages],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = Timer(seconds + 5, process.kill)  # it ends all by itself after seconds + 2
    with process:
        try:
            end.start()
            process.communicate(json.dumps(asdict(program)).encode())
        finally:
            end.cancel()
            process.kill()
    return process.returncode
