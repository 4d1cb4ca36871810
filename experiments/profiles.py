"""Where the time of a program goes, by kind of operation, as JAX's profiler saw it."""

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def profile(run: Callable[[], object]) -> list[tuple[str, float]]:
    """What one call, compiled before, spends its time on: (kind of operation, share), the ten largest."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            run()
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[event["args"]["hlo_op"].split(".")[0]] += event["dur"]
    for name in ("while", "call", "conditional"):  # the time of what they hold is counted there
        spent.pop(name, None)
    total = sum(spent.values())
    return [(name, seconds / total) for name, seconds in spent.most_common(10)]
