"""How near is a step of reconstruction to the time of its matrix products, and does its memory grow with the library?

Command: python -m experiments.benchmarks.reconstruction_speed                          (10 minutes on 2 cores)
Answer:  see results/reconstruction_speed

Speed: a step on 64 adapters of SmolLM2's shape (q and v, rank 8), network L, with each loss. The products of the
network are counted (forward, and twice that backward) and divided by the rate of the largest of them, measured between
the steps. Processor time is given besides wall time, since the machine may be shared. Memory: the largest anonymous
resident memory of a process that trains on libraries of random adapters.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.tools.distil import NET, RECIPE
from experiments.tools.results import RESULTS, write
from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter, LoraModule, LoraSpec
from t2l_jax.training import OptimizerConfig, TrainState, make_optimizer, make_step
from t2l_jax.training.initial import with_statistics
from t2l_jax.training.objectives import Reconstruction, ReconstructionConfig, TargetBatch
from t2l_jax.training.trainees import OneHotHypernetwork

SPEC = LoraSpec((LoraModule("q_proj", 576, 576), LoraModule("v_proj", 576, 192)), num_layers=30, rank=8)
LOSSES = ("factors", "delta", "gram")

MEMORY = """
import sys, threading, time
from pathlib import Path
from t2l_jax.training import LoopConfig
from t2l_jax.training.recipe import ReconstructionRecipe
from t2l_jax.training.run import run

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 2**20

peak, done = 0.0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.02)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
loop = LoopConfig(steps=3, validate_every=3, checkpoint_every=3)
run(ReconstructionRecipe(trainee="one-hot", library=sys.argv[1], loop=loop), Path(sys.argv[2]))
done = True
watcher.join()
print(peak)
"""


@dataclass(frozen=True)
class ReconstructionSpeed:
    """Measure steps and memory."""

    adapters: int = 64
    """Adapters per step."""
    repeats: int = 7
    """Steps of each loss, in turns with the product."""
    libraries: tuple[int, ...] = (128, 512)
    """Sizes of the libraries whose memory is measured; none with an empty list."""
    out: Path = RESULTS / "reconstruction_speed"


def products(config: HypernetConfig, spec: LoraSpec, adapters: int) -> float:
    """Floating-point operations of the matrix products of one step of network L."""
    latent, hidden = config.latent, 4 * config.latent
    trunk = 3 * 2 * latent * hidden + latent * hidden + hidden * config.head_in
    queries = adapters * spec.num_layers
    heads = config.head_in * spec.rank * sum(module.d_in + module.d_out for module in spec.modules)
    return 3 * 2.0 * queries * (len(spec.modules) * trunk + heads)


def random_adapter(rng: np.random.Generator, *lead: int) -> Adapter:
    """Weights of a trained adapter's size."""
    weights = {
        name: {side: 0.02 * rng.standard_normal((*lead, *shape), np.float32) for side, shape in pair.items()}
        for name, pair in SPEC.shapes().items()
    }
    return Adapter(jax.tree.map(jnp.asarray, weights), SPEC)


def stepper(loss: str, batch: TargetBatch) -> Callable[[], Any]:
    """A function that takes one step."""
    count = len(batch.target)
    trainee = OneHotHypernetwork.make(NET, SPEC, None, count)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), batch.target)
    std = jax.tree.map(lambda leaf: jnp.std(leaf, axis=0), batch.target)
    variables = with_statistics(trainee.init(jax.random.key(0)), mean, std)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 1000)
    config = ReconstructionConfig(loss)  # type: ignore[arg-type]
    objective = Reconstruction(std if config.scores else None, config)
    step = make_step(trainee, optimizer, seed=0)
    state = TrainState(jnp.zeros((), jnp.int32), variables["params"], optimizer.init(variables["params"]))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, {"constants": variables["constants"]}, objective, batch)
        jax.block_until_ready((state.params, metrics))

    return run


def clocked(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def speed(args: ReconstructionSpeed) -> list[dict[str, Any]]:
    """Steps of each loss in turns with the largest product."""
    rng = np.random.default_rng(0)
    batch = TargetBatch(Condition(task=jnp.arange(args.adapters)), random_adapter(rng, args.adapters))
    rows, inner = args.adapters * SPEC.num_layers, NET.head_in
    wide = SPEC.rank * (SPEC.modules[0].d_in + SPEC.modules[0].d_out)
    left, right = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((rows, inner), (inner, wide)))
    matmul = jax.jit(jnp.matmul)
    runs: dict[str, Callable[[], Any]] = {"product": lambda: jax.block_until_ready(matmul(left, right))}
    runs |= {loss: stepper(loss, batch) for loss in LOSSES}
    for run in runs.values():
        run(), run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            times[name].append(clocked(run))
    middle = {name: [statistics.median(column) for column in zip(*own, strict=True)] for name, own in times.items()}
    work, unit = products(NET, SPEC, args.adapters), 2.0 * rows * inner * wide
    floor = [work / unit * seconds for seconds in middle["product"]]
    table = []
    for loss in LOSSES:
        walls = sorted(wall for wall, _ in times[loss])
        table.append(
            {
                "loss": loss,
                "step, s": round(middle[loss][0], 3),
                "fastest": round(walls[0], 3),
                "slowest": round(walls[-1], 3),
                "the network's products, s": round(floor[0], 3),
                "step / products": round(middle[loss][0] / floor[0], 2),
                "the same, processor time": round(middle[loss][1] / floor[1], 2),
                "step / step of factors": round(middle[loss][0] / middle["factors"][0], 2),
            }
        )
    return table


def memory(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Peak memory of training on libraries of these sizes."""
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            library = Path(folder) / str(size)
            for index in range(size):
                save_peft(random_adapter(rng), library / f"task{index:04d}", base_model=RECIPE.base_name)
            command = [sys.executable, "-c", MEMORY, str(library), str(Path(folder) / f"run{size}")]
            cache = {"T2L_CACHE": str(Path(folder) / "cache")}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **cache})
            gigabytes = json.loads(done.stdout.splitlines()[-1])
            whole = size * SPEC.size * 4 / 2**30
            rows.append({"library": size, "its size, GiB": round(whole, 2), "peak memory, GiB": round(gigabytes, 2)})
    return rows


def main(args: ReconstructionSpeed) -> None:
    """Measure and write the tables."""
    tables = {f"A step on {args.adapters} adapters, medians of {args.repeats}": speed(args)}
    if args.libraries:
        tables["Training on a library, 64 adapters a step, loss gram"] = memory(args.libraries)
    write(args.out, tables)


if __name__ == "__main__":
    main(tyro.cli(ReconstructionSpeed))
