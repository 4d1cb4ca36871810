"""How fast do thousands of descriptions become adapters, in compute and on disk, and what survives SIGKILL?

Command: python -m experiments.benchmarks.bulk_speed         (7 minutes on 2 cores, 5 GB of temporary disk)
Answer:  from embeddings to packed bfloat16 at 83 percent of compute's rate, to folders at 70; memory does not grow;
         text takes longer than the rest; a killed run ends with the same adapters (results/bulk_speed)

Compute is the hypernetwork on batches of embeddings, outputs left on the device, next to a large float32 matrix product
measured beside it and to one description at a time. The pipeline is what `t2l generate --from` runs, each time in a
process of its own, with embeddings that cost nothing in place of the text encoder; beside it, in the same round, stand
compute alone and a plain write of as many bytes. Whole commands include text encoder and process start; the one to
folders is run again and killed on the way.
"""

import json
import multiprocessing
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
from t2l_jax.bulk import Request, generate_to_folder
from t2l_jax.data import words
from t2l_jax.hypernet import Condition
from t2l_jax.model import Model


@dataclass(frozen=True)
class BulkSpeed:
    """Measure batch generation of adapters."""

    count: int = 1000
    batch: int = 64
    kills: int = 5
    packed: int = 2000
    """Adapters of the pipeline and of the whole command to packed files."""
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


def run_command(
    args: BulkSpeed, requests: Path, out: Path, until: int | None = None, options: Sequence[str] = ()
) -> bool:
    """Run t2l generate, killed once `until` adapters are there; return whether it ended by itself."""
    command = [sys.executable, "-c", "from t2l_jax.cli import main; main()", "generate"]
    command += ["--from", str(requests), "--out", str(out), "--batch", str(args.batch), *options]
    process = subprocess.Popen(command if args.model is None else [*command, "--model", args.model])
    while process.poll() is None:
        if until is not None and whole(out) >= until:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    return process.returncode == 0


class DrawnEmbeddings:
    """An encoder that costs nothing: random embeddings."""

    fingerprint = "drawn"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(texts), self.dim), dtype=np.float32)


def pipeline(location: str | None, count: int, batch: int, packed: bool, dtype: str) -> tuple[float, float]:
    """Seconds from embeddings to adapters on disk, compiled before, and the process's peak memory in GB."""
    model = t2l_jax.load(location)
    model.__dict__["encoder"] = DrawnEmbeddings(model.config.hypernet.task.dim)
    requests = [Request(f"a{index}", str(index)) for index in range(count)]
    with tempfile.TemporaryDirectory() as scratch:
        generate_to_folder(model, requests[: 2 * batch], Path(scratch) / "first", batch, packed, dtype)
        out = Path(scratch) / "out"
        seconds = timed(lambda: generate_to_folder(model, requests, out, batch, packed, dtype))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compute(location: str | None, count: int, batch: int) -> tuple[float, float]:
    """The same of the hypernetwork alone, outputs left on the device."""
    model = t2l_jax.load(location)
    drawn = Condition(z=DrawnEmbeddings(model.config.hypernet.task.dim).embed([""] * batch))
    jax.block_until_ready(model.adapters(drawn))
    seconds = timed(lambda: [jax.block_until_ready(model.adapters(drawn)) for _ in range(-(-count // batch))])
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plain_write(count: int, size: int) -> tuple[float, float]:
    """The same of writing `count` blocks of `size` bytes to one file."""
    block = np.random.default_rng(0).bytes(size)
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "file").open("wb", buffering=0) as file:
        seconds = timed(lambda: [file.write(block) for _ in range(count)])
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_pipeline(model: Model, args: BulkSpeed) -> list[dict[str, Any]]:
    """Each side in a process of its own, in shuffled order, three times."""
    size, count, quarter = model.config.lora.size, args.packed, args.packed // 4
    sides: dict[str, tuple[int, Any, tuple[Any, ...]]] = {
        "compute alone": (count, compute, (args.model, count, args.batch)),
        "plain write of bfloat16": (count, plain_write, (count, 2 * size)),
        "plain write of float32": (count, plain_write, (count, 4 * size)),
        "packed, bfloat16": (count, pipeline, (args.model, count, args.batch, True, "bfloat16")),
        "packed, bfloat16, a quarter of them": (quarter, pipeline, (args.model, quarter, args.batch, True, "bfloat16")),
        "packed, float32": (count, pipeline, (args.model, count, args.batch, True, "float32")),
        "folders, float32": (count, pipeline, (args.model, count, args.batch, False, "float32")),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    context = multiprocessing.get_context("spawn")
    for turn in range(3):
        for name in random.Random(turn).sample(list(sides), len(sides)):
            _, function, arguments = sides[name]
            with context.Pool(1) as pool:
                found[name].append(pool.apply(function, arguments))
    alone = statistics.median(seconds for seconds, _ in found["compute alone"]) / count
    rows = []
    for name, (number, _, _) in sides.items():
        seconds = sorted(seconds for seconds, _ in found[name])
        each = statistics.median(seconds) / number
        rows.append(
            {
                "pipeline": name,
                "adapters": number,
                "adapters/s": round(1 / each),
                "from": round(number / seconds[-1]),
                "to": round(number / seconds[0]),
                "percent of compute alone": round(100 * alone / each),
                "peak memory, GB": round(max(peak for _, peak in found[name]), 2),
            }
        )
    return rows


def measure_packed_command(args: BulkSpeed, texts: Sequence[str]) -> list[tuple[str, Any]]:
    """The whole command to packed files, of descriptions that all differ."""
    with tempfile.TemporaryDirectory() as scratch:
        requests = Path(scratch) / "tasks.jsonl"
        every = [f"{texts[index % len(texts)]} ({index})" for index in range(args.packed)]
        lines = [json.dumps({"name": f"a{i}", "description": text}) for i, text in enumerate(every)]
        requests.write_text("\n".join(lines) + "\n")
        packed = ("--format", "packed", "--dtype", "bfloat16")
        seconds = timed(lambda: run_command(args, requests, Path(scratch) / "out", options=packed))
        assert len((Path(scratch) / "out" / "manifest.jsonl").read_text().splitlines()) == args.packed
    return [
        ("packed adapters, bfloat16", args.packed),
        ("seconds, whole command to packed", round(seconds, 1)),
        ("packed adapters/s", round(args.packed / seconds)),
    ]


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two adapters."""
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def main(args: BulkSpeed) -> None:
    """Compute, disk, kills."""
    model = t2l_jax.load(args.model)
    computed = measure_compute(model, args)
    piped = measure_pipeline(model, args)
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
        *measure_packed_command(args, texts),
    ]
    write(
        args.out,
        {
            "Compute": computed,
            "Pipeline": piped,
            "Whole commands": [{"to disk": name, "value": value} for name, value in disk],
        },
    )


if __name__ == "__main__":
    main(tyro.cli(BulkSpeed))
