"""How near is the hypernetwork, writing many adapters at once, to the bare products of its heads, and to PyTorch?

Command: taskset -c 0 python -m experiments.benchmarks.hypernet_speed                         (3 minutes on one core)
Answer:  faster than PyTorch; L at three quarters of the products' rate, M at 70 percent, S, which has more work before
         its heads than in them, at a third, where its arithmetic allows two fifths (results/hypernet_speed)

Random weights of every architecture at SmolLM2-135M's shape (q, v, rank 8), float32, one thread, processor time, all
sides in one process in shuffled order. The products are the heads' alone, of the columns that are kept. PyTorch is the
paper's network, written below for a batch of tasks. "Arithmetic" is the heads' share of the network's multiplications:
what the first column would be if everything ran at the rate of the heads' products.
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from torch.nn.functional import layer_norm, silu

from experiments.tools.results import RESULTS, write
from t2l_jax.hypernet import Condition, HypernetConfig, Variables, init, write_adapters
from t2l_jax.lora import LoraModule, LoraSpec

SPEC = LoraSpec((LoraModule("q_proj", 576, 576), LoraModule("v_proj", 576, 192)), num_layers=30)
PLAIN = HypernetConfig(init="reconstruction", dropout=0.0)
NETS = {
    "L": PLAIN,
    "M": replace(PLAIN, head="M"),
    "S": replace(PLAIN, head="S"),
    "S, rotary": replace(PLAIN, head="S", rotary_rows=True),
}


@dataclass(frozen=True)
class HypernetSpeed:
    """Time batches of adapters."""

    tasks: int = 64
    """Adapters of a batch."""
    rounds: int = 7
    out: Path = RESULTS / "hypernet_speed"


class Torch:
    """The paper's network in PyTorch, all queries of a batch at once."""

    def __init__(self, config: HypernetConfig, variables: Variables) -> None:
        tree = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), variables)
        self.config, self.params, self.constants = config, tree["params"], tree.get("constants", {})
        self.query = self.params["query"]

    def norm(self, p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps=1e-5)

    def linear(self, p: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(p["bias"], x.reshape(-1, x.shape[-1]), p["kernel"]).view(*x.shape[:-1], -1)

    def mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        p = self.query[name]
        x = x if name == "mixer" else self.norm(p["norm"], x)
        return silu(self.linear(p["down"], silu(self.linear(p["up"], x))))

    def embedded(self, name: str) -> torch.Tensor:
        return self.norm(self.query[f"{name}_norm"], self.query[name]["embedding"])

    def __call__(self, z: torch.Tensor) -> list[torch.Tensor]:
        """A and B of each module."""
        layers, modules = SPEC.num_layers, len(SPEC.modules)
        task = self.norm(self.params["task"]["norm"], self.linear(self.params["task"]["linear"], z))
        parts = task[:, None, None], self.embedded("depth")[None, None], self.embedded("type")[None, :, None]
        x = self.mlp("mixer", torch.cat([part.expand(len(z), modules, layers, -1) for part in parts], dim=-1))
        x = x + self.mlp("mlp1", x)
        found = []
        for index, hidden in enumerate(self.hidden(x).unbind(1)):  # [T, L, (side, (row,)) h]
            found += self.read_out(SPEC.modules[index], hidden)
        return found

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        if self.config.head == "L":
            return self.mlp("mlp3", x + self.mlp("mlp2", x))
        sides = self.embedded("side").view(1, len(SPEC.modules), 1, 2, -1)
        y = x[..., None, :] + sides
        u = y + self.mlp("mlp2", y)
        if self.config.head == "M":
            return self.mlp("mlp3", u)
        if self.config.rotary_rows:
            half = u.shape[-1] // 2
            angles = torch.outer(torch.arange(SPEC.rank), 10_000.0 ** (-torch.arange(half) / half))
            first, second = u[..., None, :half], u[..., None, half:]
            cos, sin = angles.cos(), angles.sin()
            w = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
            return self.mlp("mlp3", w + self.mlp("mlp2", w))
        rows = self.embedded("row")
        return self.mlp("mlp3", u[..., None, :] + rows + self.mlp("mlp2", rows))

    def read_out(self, module: LoraModule, h: torch.Tensor) -> list[torch.Tensor]:
        p, (tasks, layers), rank = self.params[f"head_{module.name}"], h.shape[:2], SPEC.rank
        split = rank * module.d_in
        out = h.reshape(-1, h.shape[-1]) @ p["kernel"]
        if self.config.head == "L":
            out = out.view(tasks, layers, -1)
            a, b = out[..., :split].unflatten(-1, (rank, -1)), out[..., split:].unflatten(-1, (rank, -1))
            return [a + p["bias_a"], (b + p["bias_b"]).mT]
        a, b = out.view(tasks, layers, 2, rank, -1).unbind(2)
        bias = self.constants[f"head_{module.name}"]["bias_a"]
        return [a[..., : module.d_in] + bias, b[..., : module.d_out].mT]


def bare_products(config: HypernetConfig, tasks: int) -> Callable[[], Any]:
    """The products of the heads alone."""
    rng = np.random.default_rng(0)
    rows, width = tasks * SPEC.num_layers * (SPEC.rank if config.head == "S" else 1), config.head_in
    repeats = 1 if config.head == "S" else SPEC.rank
    pairs = []
    for module in SPEC.modules:
        sides = [module.d_in + module.d_out] if config.head == "L" else [module.d_in, module.d_out]
        for side in sides:
            shapes = (rows, width), (width, repeats * side)
            pairs.append(tuple(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes))
    run = jax.jit(lambda pairs: [h @ kernel for h, kernel in pairs])
    return lambda: jax.block_until_ready(run(pairs))


def share_of_heads(config: HypernetConfig) -> float:
    """The heads' share of one task's multiplications."""
    d, queries = config.latent, SPEC.num_layers * len(SPEC.modules)
    small, last = 8 * d * d, 4 * d * d + 4 * d * config.head_in  # of mixer, mlp1 and mlp2; of mlp3
    heads = config.head_in * SPEC.num_layers * SPEC.rank * sum(m.d_in + m.d_out for m in SPEC.modules)
    sides = 1 if config.head == "L" else 2
    rows = SPEC.rank if config.head == "S" else 1
    trunk = 2 * small + sides * small + sides * rows * last + (sides * rows * small if config.rotary_rows else 0)
    return heads / (heads + queries * trunk)


def measure(name: str, args: HypernetSpeed) -> dict[str, Any]:
    """One row of the table."""
    config = NETS[name]
    variables = init(jax.random.key(0), config, SPEC)
    z = np.random.default_rng(0).standard_normal((args.tasks, config.task.dim), np.float32)
    start = time.perf_counter()
    run = jax.jit(partial(write_adapters, config, SPEC)).lower(variables, Condition(z=z)).compile()
    seconds = time.perf_counter() - start
    theirs, condition, tensor = Torch(config, variables), Condition(z=jnp.asarray(z)), torch.from_numpy(z)
    with torch.inference_mode():
        sides = {
            "ours": lambda: jax.block_until_ready(run(variables, condition)),
            "products": bare_products(config, args.tasks),
            "PyTorch": lambda: theirs(tensor),
        }
        leaves = [leaf for m in SPEC.names for leaf in sides["ours"]().weights[m].values()]
        for ours, other in zip(leaves, sides["PyTorch"](), strict=True):
            np.testing.assert_allclose(ours, other.numpy(), atol=1e-4)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(args.rounds + 1):
            for side in random.Random(turn).sample(list(sides), len(sides)):
                before = time.process_time()
                sides[side]()
                times[side].append(time.process_time() - before)
    times = {side: found[1:] for side, found in times.items()}  # the first turn is warm-up
    ms = {side: round(1e3 * statistics.median(found)) for side, found in times.items()}
    return {
        "head": name,
        "ours, ms": ms["ours"],
        "from": round(1e3 * min(times["ours"])),
        "to": round(1e3 * max(times["ours"])),
        "products, ms": ms["products"],
        "PyTorch, ms": ms["PyTorch"],
        "percent of the products' rate": round(100 * ms["products"] / ms["ours"]),
        "arithmetic, percent": round(100 * share_of_heads(config)),
        "times PyTorch": round(ms["PyTorch"] / ms["ours"], 2),
        "compiled in, s": round(seconds, 1),
    }


def main(args: HypernetSpeed) -> None:
    """Every architecture in turn."""
    torch.set_num_threads(1)
    rows = [measure(name, args) for name in NETS]
    write(args.out, {f"{args.tasks} adapters at once, one thread": rows})


if __name__ == "__main__":
    main(tyro.cli(HypernetSpeed))
