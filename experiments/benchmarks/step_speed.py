"""How many seconds does a training step take on an accelerator, next to its floor?

Command: python -m experiments.benchmarks.step_speed                                       (50 seconds on an H200)
Answer:  some five times the floor, and with rematerialisation less than without (results/step_speed)

The hypernetwork L writes adapters for SmolLM2-135M's shape and learns through them, as smollm2_family.py does; weights
and tokens are random, so nothing needs to be downloaded. Every fifth token is supervised. The floor is the base model's
products with its weights alone, once forward and once back (frozen weights have no gradient), at the rate that a large
square product in bfloat16 reaches on the same device.
"""

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.tools.results import RESULTS, write
from experiments.tools.stepper import stepper
from experiments.tools.turns import timed
from t2l_jax.data.batch import Batch
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.training.recipe import ComputeConfig
from t2l_jax.training.trainees import SharedLora, TextHypernetwork

SHAPE = DecoderConfig(
    vocab_size=49152,
    width=576,
    mlp_width=1536,
    num_layers=30,
    attention=AttentionConfig(num_heads=9, num_kv_heads=3, head_dim=64, layers=(LayerAttention(),) * 30),
)


@dataclass(frozen=True)
class StepSpeed:
    """Time training steps."""

    tasks: int = 64
    """Rows of a step, each of a task of its own."""
    length: int = 256
    """Tokens of a row."""
    steps: int = 20
    """Steps that are timed."""
    out: Path = RESULTS / "step_speed"


def make_batch(args: StepSpeed) -> Batch:
    """Random tokens in rows of eight examples."""
    rng = np.random.default_rng(0)
    shape = (args.tasks, 1, args.length)
    segments = np.broadcast_to(2 + 8 * np.arange(args.length) // args.length, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(args.length) % (args.length // 8), shape).astype(np.int32)
    weights = (np.arange(args.length) % 5 == 0) * np.ones(shape, np.float32)
    tokens, targets = rng.integers(0, SHAPE.vocab_size, (2, *shape), dtype=np.int32)
    z = rng.standard_normal((args.tasks, 384), dtype=np.float32)
    ids = np.arange(args.tasks, dtype=np.int32)
    return Batch(Condition(z, ids), tokens, segments, positions, targets, weights / weights.sum())


def peak(size: int = 8192) -> float:
    """FLOP/s of a square product in bfloat16."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
    times = jax.jit(lambda x: x @ x)
    jax.block_until_ready(times(x))
    return 2 * size**3 / min(timed(lambda: jax.block_until_ready(times(x))) for _ in range(10))


def main(args: StepSpeed) -> None:
    """Time the hypernetwork with and without rematerialisation, and one shared LoRA."""
    batch = jax.device_put(make_batch(args))
    fresh = ComputeConfig("bfloat16").decoder(SHAPE)
    base = jax.jit(lambda: fresh.init(jax.random.key(0), batch.tokens[0])["params"])()
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
    weights = sum(leaf.size for leaf in jax.tree.leaves(base["layers"]))
    places = args.tasks * args.length
    flops = 4 * weights * places + 4 * SHAPE.vocab_size * SHAPE.width * float((batch.weights > 0).sum())
    rate = peak()
    floor = {"TFLOP": round(flops / 1e12, 1), "TFLOP/s": round(rate / 1e12), "ms": round(1e3 * flops / rate, 1)}
    rows = []
    spec = SHAPE.lora_spec()
    for label, trainee, remat in (
        ("hypernetwork L", TextHypernetwork(HypernetConfig(), spec), "none"),
        ("hypernetwork L, remat", TextHypernetwork(HypernetConfig(), spec), "projections"),
        ("one LoRA", SharedLora(spec), "none"),
    ):
        decoder = ComputeConfig("bfloat16", remat=remat).decoder(SHAPE)
        run = partial(stepper(trainee, decoder, base, lora_dropout=0.0), batch)
        run()  # compiles
        seconds = [timed(run) for _ in range(args.steps)]
        typical, low, high = (
            round(1e3 * value, 1) for value in (statistics.median(seconds), min(seconds), max(seconds))
        )
        rate = round(places / statistics.median(seconds))
        rows.append({"trained": label, "ms": typical, "fastest": low, "slowest": high, "tokens/s": rate})
        print(rows[-1], flush=True)
    write(args.out, {f"{args.tasks} rows of {args.length} tokens, bfloat16": rows, "Floor": [floor]})


if __name__ == "__main__":
    main(tyro.cli(StepSpeed))
