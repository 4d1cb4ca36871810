"""Renders chat templates in a process of their own, because a template is a program that comes with a model.

It may loop without end or fill the memory, in any thread and inside of a single operation, and nothing in the same
process could stop it then. The process is started when it is first needed, and serves all templates until the end.
"""

import atexit
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from t2l_jax.decoder import template_child
from t2l_jax.errors import UserError

SECONDS = 2.0  # of computing, for all conversations of a request; a usual conversation takes 50 microseconds
MEMORY = 1 << 30  # bytes of address space, of which 200 MB are in use before
Reply = dict[str, str]  # {"text"} or {"error"}


class TemplateProcess:
    """The process; its requests wait for each other."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._forgotten: list[subprocess.Popen[bytes]] = []

    def render(
        self, template: str, specials: Mapping[str, Any], conversations: Sequence[Any], *, answered: bool
    ) -> list[Reply]:
        """Each conversation as text, or what went wrong with it. `specials` are the tokenizer's special tokens.

        Raises UserError if the template ends the process, or the process cannot be used; it says what the template
        does, for a sentence that starts with its name.
        """
        name = secrets.token_hex(8)  # not a count, which would be the same in two processes after a fork
        request = {
            "name": name,
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
            try:
                return _replies(self._ask(line), name, len(conversations))
            except BaseException:  # an interrupt, too: what comes later must not be taken for the next reply
                self.close()
                raise

    def start(self) -> None:
        """Start the process, without waiting for it, so that the first request finds it ready."""
        with self._lock, suppress(UserError):  # which the first request raises again
            self._start()

    def close(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass  # leaving it closes the pipes and waits

    def forget(self) -> None:
        """In a fork of this process: leave the pipes to the parent, and start another process when it is needed."""
        process, self._process = self._process, None
        self._lock = threading.Lock()  # the old one may be held by a thread that is not here
        if process is None:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.dup2(null, pipe.fileno(), inheritable=False)  # closing it could send what the parent has half written
        os.close(null)
        process.returncode = 0  # it is no child of this process: nothing to wait for
        self._forgotten.append(process)

    def _ask(self, line: bytes) -> bytes:
        """The line that answers this one. Raises UserError if the process ends instead."""
        try:
            process = self._send(line)
        except BrokenPipeError:  # it had ended since the last request, which tells nothing about this one
            self.close()
            try:
                process = self._send(line)
            except BrokenPipeError as error:
                raise UserError("cannot be rendered: its process ends before it has read the turns") from error
        assert process.stdout is not None
        reply = process.stdout.readline()
        if reply.endswith(b"\n"):
            return reply
        status = process.wait()
        if status == -signal.SIGPROF:
            raise UserError(f"does not end within {self._seconds:g} seconds")
        raise UserError(f"ends its process (status {status}), as one does that needs over {MEMORY >> 30} GB of memory")

    def _send(self, line: bytes) -> "subprocess.Popen[bytes]":
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        said = ""
        while not self._ready:  # until then, it is what imports print, or why they fail
            start = process.stdout.readline()
            if not start:
                raise UserError(
                    f"cannot be rendered: its process does not start (status {process.wait()}): {said:.200}"
                )
            self._ready = start == template_child.READY
            said = " ".join(start.decode(errors="replace").split()) or said
        process.stdin.write(line)
        process.stdin.flush()
        return process

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._ready = False
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", template_child.__file__, str(self._seconds), str(MEMORY)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            except OSError as error:
                raise UserError(f"cannot be rendered: its process does not start: {error}") from error
        return self._process


def _replies(line: bytes, name: str, count: int) -> list[Reply]:
    """The replies in a line. Raises UserError unless it answers the request of this name, of so many conversations."""
    with suppress(ValueError):
        answer = json.loads(line)
        if isinstance(answer, dict) and answer.get("name") == name and len(answer["replies"]) == count:
            replies: list[Reply] = answer["replies"]
            return replies
    raise UserError("cannot be rendered: its process answers something else; try again")


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)
os.register_at_fork(after_in_child=PROCESS.forget)
