"""Renders chat templates in a process of their own, because a template is a program that comes with a model.

It may loop without end or fill the memory, in any thread and inside of a single operation, and nothing in the same
process could stop it then. The process is started when it is first needed, and serves all templates until the end.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from t2l_jax.decoder import template_child
from t2l_jax.errors import UserError

SECONDS = 2.0  # of computing, for one conversation; a usual one takes 50 microseconds
MEMORY = 1 << 30  # bytes of address space, of which 200 MB are in use before
Reply = dict[str, str]  # {"text"} or {"error"}


class TemplateProcess:
    """The process; its requests wait for each other."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self, template: str, specials: Mapping[str, Any], conversations: Sequence[Any], *, answered: bool
    ) -> list[Reply]:
        """Each conversation as text, or what went wrong with it. `specials` are the tokenizer's special tokens.

        Raises UserError if the template ends the process.
        """
        request = {
            "template": template,
            "specials": dict(specials),
            "conversations": list(conversations),
            "answered": answered,
        }
        try:
            line = json.dumps(request).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"cannot be given the turns: {error}") from error
        with self._lock:
            replies: list[Reply] = json.loads(self._ask(line))
        return replies

    def close(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass  # leaving it closes the pipes and waits

    def _ask(self, line: bytes) -> bytes:
        """The line that answers this one. Raises UserError if the process ends instead."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        reply = b""
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
                reply = process.stdout.readline()
        except BaseException:  # an interrupt: what comes later must not be taken for the next reply
            self.close()
            raise
        if not reply.endswith(b"\n"):
            status = process.wait()
            self.close()
            if status == -signal.SIGPROF:
                raise UserError(f"does not end within {self._seconds:g} seconds")
            raise UserError(f"ends its process (status {status}): it needs more than {MEMORY >> 30} GB of memory")
        return reply

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", template_child.__file__, str(self._seconds), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)
