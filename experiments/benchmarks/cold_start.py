"""How long does a newcomer wait for one adapter, and for the help?

Command: python -m experiments.benchmarks.cold_start                                  (2 minutes on 2 cores)
Answer:  a few seconds for an adapter, a fraction of one for the help (results/bench)

Whole commands in fresh processes, in turns: `t2l generate` with the packaged model, `t2l --help`, and two others for
scale. What must be there before a first line of ours can run is the import of JAX and Flax; what it would take to have
the description embedded by sentence-transformers alone is what the command needed before its encoders were in Flax. One
round goes before, which fills the cache of compiled programs.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.tools.results import RESULTS, write
from t2l_jax.encoder import SHORT_NAMES
from t2l_jax.io.locations import resolve

SENTENCE = "Answer with the last word."
CLI = "from t2l_jax.cli import main; main()"
EMBED = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device="cpu").encode([sys.argv[2]])
"""


@dataclass(frozen=True)
class ColdStart:
    """Time whole commands."""

    rounds: int = 5
    out: Path = RESULTS / "cold_start"


def timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a Python program by the clock and by the processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(args: ColdStart) -> None:
    """Write the median of each program."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # otherwise sentence-transformers asks for files that a folder does not have
    minilm = str(resolve(SHORT_NAMES["minilm"]).path)
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            programs = {
                "t2l generate, one adapter to disk": [CLI, "generate", SENTENCE, "--out", f"{folder}/{number}"],
                "sentence-transformers, one embedding": [EMBED, minilm, SENTENCE],
                "import jax, flax": ["import jax, flax.linen; jax.devices()"],
                "t2l --help": [CLI, "--help"],
            }
            for name, program in programs.items():
                found = timed(program)
                if number:
                    times.setdefault(name, []).append(found)
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        seconds, busy = zip(*found, strict=True)
        rows.append(
            {
                "program": name,
                "seconds": round(statistics.median(seconds), 2),
                "fastest": round(min(seconds), 2),
                "slowest": round(max(seconds), 2),
                "processor time": round(statistics.median(busy), 2),
            }
        )
    write(args.out, {"Cold start": rows}, [f"median of {args.rounds} rounds, in turns"])


if __name__ == "__main__":
    main(tyro.cli(ColdStart))
