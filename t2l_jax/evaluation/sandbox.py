"""Whether a program that a model wrote passes its test: a new process, limited in time, memory and files.

What it protects from: a program that loops, eats memory, fills the disk, prints without end, ends early or reaches for
the network by accident. `unshare` takes the network away where the system allows it; elsewhere Python's sockets are
replaced (but Unix ones), which a program that means harm can undo. It is no jail: the program can read what you can
read. Where the model is not trusted, run the evaluation in a container.
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
FILE_BYTES = 10 << 20  # of one file
_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)

# Runs in the child: limits itself, then runs the program, then notes that it came to the end.
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
    """The Python text to run: the function, the test, and the call of `check`.

    An answer is the rest of the prompt's function, or text with the whole function, in a fenced block or not, as the
    prompt's function is. With a whole function, what stands before it in the prompt (imports, other functions) is there
    too; of prose, its lines of imports.
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
    """The program that stands before a function; of a text that is none, its lines of imports."""
    return text if _is_program(text) else _imports(text)


def _imports(text: str) -> str:
    """The lines of a text that are imports, not prose that begins like one."""
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    return "\n".join(line for line in lines if _is_program(line))


def _is_program(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def passes(text: str, seconds: int = SECONDS) -> bool:
    """True where the program runs to its end within `seconds` and MEMORY bytes, without an exception."""
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
        with suppress(ProcessLookupError):  # what it started too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        note = folder / "note"
        return note.is_file() and note.read_bytes() == word.encode()


@cache
def without_network() -> tuple[str, ...]:
    """The command that starts another one without a network; empty where the system has none or does not allow it."""
    command = ("unshare", "--user", "--map-root-user", "--net")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if allowed else ()
