"""Where does the time of a training step go on a CPU, next to the matrix products of each part?

Command: python -m experiments.benchmarks.step_parts                                         (3 minutes on 2 cores)
Answer:  nine tenths in the base model, forwards 1.4 and back 2 times its products (results/step_parts)

The step of step_speed.py in float32: hypernetwork L, 8 tasks, a row of 256 tokens each, every fifth token supervised,
SmolLM2-135M's shape with random weights. Each part is a program of its own; the time back is that of forward and
backward in one program without that forward. The floor is a part's products, counted in its program, at the rate of a
large square product in the same run; the optimizer's is its reads and writes, at the rate of a copy.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.benchmarks.step_speed import SHAPE, StepSpeed, make_batch
from experiments.tools.results import RESULTS, write
from experiments.tools.stepper import stepper
from experiments.tools.turns import timed
from t2l_jax.decoder import Decoder
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training import OptimizerConfig, make_optimizer
from t2l_jax.training.answer_loss import CHUNK, Scoring, answer_loss
from t2l_jax.training.trainees import TextHypernetwork

DROPOUT = 0.05


@dataclass(frozen=True)
class StepParts:
    """Time the parts of a training step."""

    tasks: int = 8
    length: int = 256
    rounds: int = 7
    """Times that each part runs, in turns."""
    out: Path = RESULTS / "step_parts"


@dataclass(frozen=True)
class Program:
    """Something that is compiled and timed, and what it does at least."""

    run: Callable[[], Any]
    flops: float = 0.0
    size: float = 0.0  # bytes read and written, where there are no products


def program(function: Callable[..., Any], *args: Any, chunks: int = 0) -> Program:
    """The compiled function of these arguments. `chunks`: how often a loop without a fixed count turns."""
    compiled = jax.jit(function)
    flops = product_flops(jax.make_jaxpr(function)(*args).jaxpr, chunks)
    return Program(lambda: jax.block_until_ready(compiled(*args)), flops)


def product_flops(jaxpr: Any, chunks: int) -> float:
    """FLOP of all matrix products of a program."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * inner * np.prod(equation.outvars[0].aval.shape)
        times = {"scan": equation.params.get("length"), "while": chunks}.get(equation.primitive.name, 1)
        total += times * sum(product_flops(inner, chunks) for inner in _inside(equation.params))
    return float(total)


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an equation holds."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def programs(args: StepParts) -> dict[str, Program]:
    """The parts, forwards and (where the name says so) with their way back; and the whole step."""
    batch = jax.device_put(make_batch(StepSpeed(tasks=args.tasks, length=args.length)))
    tokens, segments, positions = (x[:, 0] for x in (batch.tokens, batch.segments, batch.positions))
    decoder = Decoder(SHAPE, train=True, lora_dropout=DROPOUT)
    base = jax.jit(lambda: Decoder(SHAPE).init(jax.random.key(0), tokens)["params"])()
    trainee = TextHypernetwork(HypernetConfig(), SHAPE.lora_spec())
    params, key = trainee.init(jax.random.key(0))["params"], jax.random.key(1)

    def write_adapters(params: Any) -> Any:
        return trainee.adapters({"params": params}, batch.condition, key)[0]

    def read(adapter: Any, base: Any) -> Any:
        inputs = {"segments": segments, "positions": positions, "rngs": {"dropout": key}}
        return decoder.apply({"params": base}, tokens, adapter, **inputs)[0]

    def score(hidden: Any, base: Any) -> Any:
        return answer_loss(Scoring(SHAPE), base, hidden, batch.targets[:, 0], batch.weights[:, 0])[0]

    def and_back(function: Callable[..., Any], cotangent: Any, first: Any, *rest: Any) -> Any:
        out, pull = jax.vjp(lambda first: function(first, *rest), first)
        return out, pull(cotangent)

    adapter = jax.jit(write_adapters)(params)
    hidden = jax.jit(read)(adapter, base)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = optimizer.init(params)

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update)
    size = 7 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))  # weight, moments read, written; gradient read
    chunks = -(-int((batch.weights > 0).sum()) // CHUNK)
    return {
        "hypernetwork": program(write_adapters, params),
        "hypernetwork and back": program(partial(and_back, write_adapters), adapter, params),
        "base": program(read, adapter, base),
        "base and back": program(partial(and_back, read), hidden, adapter, base),
        "loss and back": program(jax.value_and_grad(score), hidden, base, chunks=chunks),
        "optimizer": Program(lambda: jax.block_until_ready(jitted(params, state, params)), size=size),
        "whole": Program(partial(stepper(trainee, Decoder(SHAPE), base, DROPOUT), batch)),
    }


def rates() -> tuple[float, float]:
    """FLOP/s of a square product, and bytes read and written a second in a copy."""
    square, long = jnp.ones((2048, 2048)), jnp.ones(2**26)
    product, copy = program(lambda x: x @ x, square), program(lambda x: x + 1, long)
    fastest = []
    for rate in (product, copy):
        rate.run()  # compiles
        fastest.append(min(timed(rate.run) for _ in range(10)))
    return product.flops / fastest[0], 2 * long.nbytes / fastest[1]


def main(args: StepParts) -> None:
    """Run the parts in turns; write their times next to their floors."""
    parts = programs(args)
    for part in parts.values():
        part.run()  # compiles
    flops_rate, byte_rate = rates()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(args.rounds):
        for name, part in parts.items():
            seconds[name].append(timed(part.run))
    rows = []
    for label, name, without in (
        ("hypernetwork forwards", "hypernetwork", None),
        ("base model forwards", "base", None),
        ("loss: logits and their gradient", "loss and back", None),
        ("base model back", "base and back", "base"),
        ("hypernetwork back", "hypernetwork and back", "hypernetwork"),
        ("optimizer", "optimizer", None),
        ("all parts", None, None),
        ("the step as one program", "whole", None),
    ):
        if name is None:
            row = {
                "part": label,
                **{c: round(sum(r[c] for r in rows), 1) for c in ("ms", "lowest", "highest", "floor, ms")},
            }
        else:
            less = seconds[without] if without else [0.0] * args.rounds
            own = [1e3 * (mine - other) for mine, other in zip(seconds[name], less, strict=True)]
            flops = parts[name].flops - (parts[without].flops if without else 0)
            floor = 1e3 * (flops / flops_rate + parts[name].size / byte_rate)
            median, low, high = (round(v, 1) for v in (statistics.median(own), min(own), max(own)))
            row = {"part": label, "ms": median, "lowest": low, "highest": high, "floor, ms": round(floor, 1)}
        if name == "whole":
            row["floor, ms"] = rows[-1]["floor, ms"]
        rows.append({**row, "times the floor": round(row["ms"] / row["floor, ms"], 2)})
    title = f"{args.tasks} rows of {args.length} tokens, float32"
    write(args.out, {title: rows}, [f"{flops_rate / 1e9:.0f} GFLOP/s, {byte_rate / 1e9:.0f} GB/s copied"])


if __name__ == "__main__":
    main(tyro.cli(StepParts))
