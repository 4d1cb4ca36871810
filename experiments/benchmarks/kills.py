"""Does a run that is killed twenty times at random moments end like one that was left alone, bit for bit?

Command: python -m experiments.benchmarks.kills                                                (4 minutes on 2 cores)
Answer:  yes: every line of metrics and every parameter is equal (results/kills)

Both train a tiny hypernetwork on a tiny random decoder, with noise, dropout, validation and checkpoints. Each process
of the disturbed run gets SIGKILL after a random time, while it starts (every fifth), trains, validates or saves, and is
started again in the same folder. Compared are metrics.jsonl without its rates per second, and the parameters.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

import tiny_training  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from tiny_training import curves  # noqa: E402

from experiments.tools.results import RESULTS, write  # noqa: E402
from t2l_jax.data.batch import Batch  # noqa: E402
from t2l_jax.training import LoopConfig  # noqa: E402
from t2l_jax.training.trackers import read_records  # noqa: E402

STEPPING = "stepping"  # a file that says that this process has begun to take steps


@dataclass(frozen=True)
class Kills:
    """Kill a run again and again, and compare it with one that was left alone."""

    kills: int = 20
    longest: float = 3.0
    """Longest time, in seconds, that a process trains (every fifth: lives) before it is killed; drawn uniformly."""
    steps: int = 2000
    pause: float = 0.02
    """Seconds that a batch takes to make, so that a step is not over too soon to be hit."""
    seed: int = 0
    train: Path | None = None
    """Train in this folder and do nothing else: what the processes do."""
    out: Path = RESULTS / "kills"


def train(args: Kills, folder: Path) -> None:
    """Run, or go on with, the training; write the parameters beside it."""
    loop = LoopConfig(
        steps=args.steps,
        log_every=7,
        validate_every=30,
        checkpoint_every=20,
    )
    sampler = tiny_training.sampler()

    drawn = 0

    def draw(n: int) -> Batch:
        nonlocal drawn
        drawn += 1
        if drawn == 5:  # the step is compiled and has been taken: no more than four batches are made before
            (folder / STEPPING).touch()
        time.sleep(args.pause)
        return sampler.draw(n)

    variables = tiny_training.run(folder, draw, loop=loop)
    leaves = jax.tree.leaves(variables)
    save_file({str(n): np.asarray(leaf) for n, leaf in enumerate(leaves)}, folder / "variables.safetensors")


def start(args: Kills, folder: Path, cache: Path) -> subprocess.Popen:
    """A process that trains in a folder."""
    options = ["--train", str(folder), "--steps", str(args.steps), "--pause", str(args.pause)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen([sys.executable, "-m", "experiments.benchmarks.kills", *options], env=environment, cwd=ROOT)


def main(args: Kills) -> None:
    """The undisturbed run, the disturbed one, the comparison."""
    if args.train is not None:
        train(args, args.train)
        return
    moments, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed, cache = (Path(scratch) / name for name in ("alone", "killed", "cache"))
        begin = time.perf_counter()
        assert start(args, alone, cache).wait() == 0
        seconds = round(time.perf_counter() - begin)
        for kill in range(args.kills):
            (killed / STEPPING).unlink(missing_ok=True)
            process, moment = start(args, killed, cache), moments.uniform(0, args.longest)
            while kill % 5 and process.poll() is None and not (killed / STEPPING).exists():
                time.sleep(0.005)
            try:
                raise SystemExit(f"the run ended by itself (status {process.wait(moment)}): take more --steps")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lines = read_records(killed / "metrics.jsonl")
            step = lines[-1]["step"] if lines else 0
            rows.append({"SIGKILL": kill + 1, "after, s": round(moment, 1), "metrics until step": step})
            print(rows[-1], flush=True)
        assert start(args, killed, cache).wait() == 0
        first, second = curves(alone), curves(killed)
        equal = sum(a == b for a, b in zip(first, second, strict=True))
        weights = [(folder / "variables.safetensors").read_bytes() for folder in (alone, killed)]
    comparison = [
        ("steps", args.steps),
        ("seconds of the run left alone", seconds),
        ("lines of metrics", len(first)),
        ("equal lines", equal),
        ("bytes of parameters", len(weights[0])),
        ("parameters", "equal" if weights[0] == weights[1] else "DIFFERENT"),
    ]
    write(args.out, {"Comparison": [{"what": name, "value": value} for name, value in comparison], "Kills": rows})


if __name__ == "__main__":
    main(tyro.cli(Kills))
