"""A process that renders chat templates for `template_process`, within limits of time, memory and length.

Its arguments are the seconds that a request may take and the bytes of memory. It writes the line READY, after whatever
its imports print. Then it reads a request per line, as JSON with "name", "template", "specials", "conversations" and
"answered", and writes a line with the same "name" and "replies", one for each conversation: {"text"} or {"error"}. It
imports nothing of this package, so that it starts fast.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

LENGTH = 1 << 24  # characters of a prompt
READY = b"ready for chat templates\n"


def render(request: dict[str, Any], turns: Any) -> dict[str, str]:
    """One conversation as text, as transformers' tokenizers render it."""
    try:
        text: Any = PreTrainedTokenizerBase().apply_chat_template(
            turns,
            chat_template=request["template"],
            add_generation_prompt=not request["answered"],
            tokenize=False,
            **request["specials"],
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    if len(text) > LENGTH:
        return {"error": f"it writes more than {LENGTH:,} characters"}
    return {"text": text}


def limit(what: int, amount: int) -> None:
    """Set a limit of this process, as far as the system allows; macOS has none of memory."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))


def main() -> None:
    """Serve requests until the other process closes the pipe."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends this process, whatever the one that asks does with it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, memory)
    with os.fdopen(os.dup(1), "wb") as out:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # what is printed from now on must not come between the replies
        os.dup2(null, 2)
        out.write(b"\n" + READY)
        out.flush()
        for line in sys.stdin.buffer:
            request = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing
            replies = [render(request, turns) for turns in request["conversations"]]
            signal.setitimer(signal.ITIMER_PROF, 0)
            out.write(json.dumps({"name": request["name"], "replies": replies}).encode() + b"\n")
            out.flush()


if __name__ == "__main__":
    main()
