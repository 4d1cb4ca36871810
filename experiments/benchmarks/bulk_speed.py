"""How fast do a thousand descriptions become a thousand adapters, in compute and on disk, through five SIGKILLs?

Command: python -m experiments.benchmarks.bulk_speed         (3 minutes on 2 cores, 2 GB of temporary disk)
Answer:  hundreds a second in compute, some tens to disk, and a killed run ends with the same adapters
         (results/bulk_speed)

Compute is the vmapped hypernetwork on batches of embeddings, outputs left on the device, next to a large float32 matrix
product measured beside it and to one description at a time. To disk is `t2l generate --from`, with text encoder and
process start; it is then run again and killed on the way.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from safetensors.numpy import load_file

import t2l_jax
from experiments.benchmarks.sft_speed import matmul_rate
from experiments.tools.results import RESULTS, write
from experiments.tools.turns import timed
from t2l_jax.data import words
from t2l_jax.hypernet import Condition
from t2l_jax.model import Model


@dataclass(frozen=True)
class BulkSpeed:
    """Measure batch generation of adapters."""

    count: int = 1000
    batch: int = 64
    kills: int = 5
    model: str | None = None
    """Hypernetwork. Default: the one in the package."""
    rounds: int = 5
    out: Path = RESULTS / "bulk_speed"


def flops(model: Model) -> int:
    """Floating-point operations of the matrix products that write one adapter (architecture L)."""
    spec, total = model.config.lora, 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.variables["params"])[0]:
        names = [key.key for key in path]
        if names[-1] == "kernel":
            uses = {"task": 1, "query": spec.num_layers * len(spec.modules)}.get(names[0], spec.num_layers)
            total += 2 * leaf.size * uses
    return total


def measure_compute(model: Model, args: BulkSpeed) -> list[dict[str, Any]]:
    """Adapters a second in batches and one at a time, and the batches' share of the matmul rate."""
    drawn = np.random.default_rng(0).standard_normal((args.batch, model.config.hypernet.task.dim), dtype=np.float32)
    many, one_task = Condition(z=drawn), Condition(z=drawn[:1])

    def batch() -> None:
        jax.block_until_ready(model.adapters(many))

    def single() -> None:
        jax.block_until_ready(model.adapters(one_task))

    batch(), single()
    rates, batches, singles = [], [], []
    for _ in range(args.rounds):
        rates.append(matmul_rate(jnp.float32))
        batches.append(timed(batch) / args.batch)
        singles.append(min(timed(single) for _ in range(5)))
    work, each = flops(model), statistics.median(batches)
    share = statistics.median(work / seconds / rate for seconds, rate in zip(batches, rates, strict=True))
    one = statistics.median(singles)
    found = [
        ("GFLOP an adapter", round(work / 1e9, 3)),
        ("GFLOP/s of a matrix product", round(statistics.median(rates) / 1e9)),
        (f"adapters/s, batches of {args.batch}", round(1 / each)),
        ("slowest batch, adapters/s", round(1 / max(batches))),
        ("fastest batch, adapters/s", round(1 / min(batches))),
        ("percent of the matrix product's rate", round(100 * share)),
        ("adapters/s, one at a time", round(1 / one)),
        ("batches, times as fast", round(one / each, 1)),
    ]
    return [{"compute": name, "value": value} for name, value in found]


def whole(out: Path) -> int:
    """How many adapters stand in a folder."""
    return len(list(out.glob("a*/adapter_model.safetensors")))


def run_command(args: BulkSpeed, requests: Path, out: Path, until: int | None = None) -> bool:
    """Run t2l generate, killed once `until` adapters are there; return whether it ended by itself."""
    command = [sys.executable, "-c", "from t2l_jax.cli import main; main()", "generate"]
    command += ["--from", str(requests), "--out", str(out), "--batch", str(args.batch)]
    process = subprocess.Popen(command if args.model is None else [*command, "--model", args.model])
    while process.poll() is None:
        if until is not None and whole(out) >= until:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    return process.returncode == 0


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two adapters."""
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def main(args: BulkSpeed) -> None:
    """Compute, disk, kills."""
    model = t2l_jax.load(args.model)
    compute = measure_compute(model, args)
    texts = [text for task in words.unseen_tasks(0, 0) for text in task.unseen_descriptions][: args.count]
    with tempfile.TemporaryDirectory() as scratch:
        requests = Path(scratch) / "tasks.jsonl"
        lines = [json.dumps({"name": f"a{i}", "description": text}) for i, text in enumerate(texts)]
        requests.write_text("\n".join(lines) + "\n")
        once, out = Path(scratch) / "once", Path(scratch) / "killed"
        start = time.perf_counter()
        assert run_command(args, requests, once)
        seconds = time.perf_counter() - start
        counts = []
        for kill in range(args.kills):
            assert not run_command(args, requests, out, until=len(texts) * (kill + 1) // (args.kills + 1))
            counts.append(whole(out))
        assert run_command(args, requests, out)
        left = [path.name for path in out.iterdir() if path.name.startswith(".")]
        manifest = len((out / "manifest.jsonl").read_text().splitlines())
        differences = [largest_difference(once / f"a{i}", out / f"a{i}") for i in range(len(texts))]
    disk = [
        ("adapters", len(texts)),
        ("seconds, whole command", round(seconds, 1)),
        ("adapters/s", round(len(texts) / seconds)),
        *((f"whole adapters after SIGKILL {kill + 1}", count) for kill, count in enumerate(counts)),
        ("adapters in the manifest at the end", manifest),
        ("temporary files left over", len(left)),
        ("largest difference from a run left alone", float(f"{max(differences):.1e}")),
    ]
    write(args.out, {"Compute": compute, "To disk": [{"to disk": name, "value": value} for name, value in disk]})


if __name__ == "__main__":
    main(tyro.cli(BulkSpeed))
