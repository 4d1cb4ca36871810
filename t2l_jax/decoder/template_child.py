"""A process that renders chat templates for `template_process`, within limits of time, memory and length.

Its arguments are the seconds that a conversation may take and the bytes of memory. It reads a request per line, as JSON
with "template", "specials", "conversations" and "answered", and writes a line with a reply for each conversation:
{"text"} or {"error"}. It imports nothing of this package, so that it starts fast.
"""

import json
import resource
import signal
import sys
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

LENGTH = 1 << 24  # characters of a prompt


def render(request: dict[str, Any], turns: Any, seconds: float) -> dict[str, str]:
    """One conversation as text, as transformers' tokenizers render it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing; its signal ends this process
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
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > LENGTH:
        return {"error": f"it writes more than {LENGTH:,} characters"}
    return {"text": text}


def main() -> None:
    """Serve requests until the other process closes the pipe."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for the process that asks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        replies = [render(request, turns, seconds) for turns in request["conversations"]]
        sys.stdout.buffer.write(json.dumps(replies).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
