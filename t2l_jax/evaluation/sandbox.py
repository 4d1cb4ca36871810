"""Runs a program that a model wrote against its test, in a new process limited in time, memory and file size.

It protects against programs that loop, exhaust memory, fill the disk, print endlessly, exit early or use the network by
accident. `unshare` removes the network if the system allows it; otherwise Python's sockets (except Unix ones) are
replaced, which a malicious program can undo. It is no security boundary: the program can read whatever you can read. If
you do not trust the model, run the evaluation in a container.
"""

import ast
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

SECONDS = 10
MEMORY = 1 << 30  # bytes of address space
FILE_BYTES = 10 << 20  # maximum size of one file
_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)

# Runs in the child: sets the limits, runs the program, then records that it reached the end.
_CHILD = """
import resource, runpy, socket, sys
seconds, memory, size = map(int, sys.argv[1:4])
for kind, limit in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
def refuse(*args, **kwargs):
    raise OSError("no network here")
class Socket(socket.socket):
    def __new__(cls, family=-1, *args, **kwargs):
        return super().__new__(cls) if family == socket.AF_UNIX else refuse()
socket.socket, socket.create_connection, socket.getaddrinfo = Socket, refuse, refuse
note = open(sys.argv[4], "w")
word = sys.argv[5]
del sys.argv[1:]
runpy.run_path("program.py", run_name="__main__")
note.write(word)
note.close()
"""


def program(prompt: str, answer: str, test: str, entry_point: str) -> str:
    """The Python source to run: the function, the test, and the call of `check`.

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
    return f"{function}\n\n{test}\n\ncheck({entry_point})\n"


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


def passes(text: str, seconds: int = SECONDS) -> bool:
    """True if the program runs to its end within `seconds` and MEMORY bytes, without an exception."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "program.py").write_text(text, encoding="utf-8", errors="replace")
        (folder / "child.py").write_text(_CHILD)
        limits = [str(seconds), str(MEMORY), str(FILE_BYTES)]
        command = [*without_network(), sys.executable, "-I", "-B", "child.py", *limits, "note", word]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds + 2)
        with suppress(ProcessLookupError):  # its children, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        note = folder / "note"
        return note.is_file() and note.read_bytes() == word.encode()


@cache
def without_network() -> tuple[str, ...]:
    """The command prefix that removes the network; empty if `unshare` is missing or not permitted."""
    command = ("unshare", "--user", "--map-root-user", "--net")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if allowed else ()
