"""How well do adapters fit real tasks that were not trained on? The cross-entropy of the right answers.

Command: python experiments/real_loss.py --tasks FOLDER --models smollm2-family --multitask runs/multitask9/adapters
         (3 minutes a model on two CPU cores with AMX)
Result:  smollm2-family 2.32 nats a token through one unseen wording and 2.14 through the mean of 16 others, 2.63 with
         another task's adapter, 4.38 without, and 2.54 with the multi-task LoRA; with instruction 2.19, 2.00, 2.59,
         3.57 and 2.18. At an alpha of 16, not 13.6, 2.42, 2.22 and 2.73; there with encoder7 instead of encoder10
         (experiments/wording_encoder.py) 2.40, 2.24 and 2.67, with encoder8 2.38, 2.22 and 2.70. With encoder7, 560
         more steps, a third of their tasks real, move the hypernetwork to 2.42 and the multi-task LoRA to 2.52, with
         instruction to 2.23 and 2.09; the mean of the weights before and after is at 2.40 (results/real_loss.txt)

Three rows of 256 tokens of each task's test examples. Every task counts alike, of a task every example, of an example
every token of its answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import t2l_jax
from t2l_jax.data.batches import collate, pack
from t2l_jax.data.encoding import encode_all
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import Task, named_like
from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.locations import cache_folder
from t2l_jax.lora import Adapter, stack
from t2l_jax.training.objectives.sft import Batch

ROWS, LENGTH, WORDINGS = 3, 256, 16
TOGETHER = 5  # tasks of a batch


@dataclass(frozen=True)
class RealLoss:
    """Compare adapters on unseen tasks."""

    tasks: str
    """Folder of real tasks."""
    models: tuple[str, ...] = ("smollm2-family",)
    multitask: Path | None = None
    """PEFT folder of a multi-task LoRA."""
    only: tuple[str, ...] = ("sni_*", "ni_*", "ii_*")


def task_losses(config: DecoderConfig) -> Callable[[Any, Adapter, Batch], Float[Array, " T"]]:
    """Mean cross-entropy of each task's answer tokens, under its own adapter."""
    decoder = Decoder(config, matmul_dtype=jnp.bfloat16)

    @jax.jit
    def losses(base: Any, adapters: Adapter, batch: Batch) -> Float[Array, " T"]:
        states, _ = decoder.apply(
            {"params": base}, batch.tokens, adapters, segments=batch.segments, positions=batch.positions
        )

        def row(one: tuple[Array, Array, Array]) -> Array:
            hidden, targets, weights = one
            scores = jax.nn.log_softmax(logits(config, base, hidden, jnp.bfloat16).astype(jnp.float32))
            found = jnp.take_along_axis(scores, targets[:, None], 1)[:, 0]
            return jnp.stack([-jnp.sum(found * weights), weights.sum()])

        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (states, batch.targets, batch.weights))
        sums = jax.lax.map(row, flat).reshape(*batch.tokens.shape[:2], 2).sum(1)
        return sums[:, 0] / sums[:, 1]

    return losses


def columns(model: t2l_jax.Model, tasks: list[Task], multitask: Path | None) -> dict[str, Adapter]:
    """Adapters [T], by what they are made from."""

    def embed(texts: list[str]) -> np.ndarray:
        return model.encoder.embed(texts, cache_folder() / "embeddings")

    held_out = embed([task.held_out_wording() for task in tasks])
    means = np.stack([embed(list(task.descriptions[:WORDINGS])).mean(0) for task in tasks])
    means *= np.sqrt(means.shape[-1]) / np.linalg.norm(means, axis=-1, keepdims=True)
    aligned = model.adapters(held_out)
    found = {
        "one unseen wording": aligned,
        f"mean of {WORDINGS} wordings": model.adapters(means),
        "misaligned": model.adapters(np.roll(held_out, 1, 0)),
        "none": jax.tree.map(jnp.zeros_like, aligned),
    }
    return (
        found if multitask is None else found | {"multi-task LoRA": stack([t2l_jax.load_peft(multitask)] * len(tasks))}
    )


def main(args: RealLoss) -> None:
    """Print a line for each model, prompt mode and kind of adapter."""
    tasks = named_like(read_tasks(args.tasks)["unseen tasks"], args.only)
    for source in args.models:
        model = t2l_jax.load(source)
        (config, base), tokenizer = load_base(model.config.base), load_tokenizer(model.config.base)
        losses = task_losses(config)
        adapters = columns(model, tasks, args.multitask)
        for mode in ("instance", "instruction"):
            jobs = [(task.test, (task.held_out_wording(),) if mode == "instruction" else ()) for task in tasks]
            tables = encode_all(tokenizer, jobs, cache_folder() / "tokens")
            packed = [pack(table, np.arange(len(table))[::-1], ROWS, LENGTH) for table in tables]
            fit = np.asarray([index for index, task in enumerate(packed) if any(task.rows)])
            z = np.zeros((TOGETHER, 1), np.float32)
            for name, every in adapters.items():
                found: list[float] = []
                for start in range(0, len(fit), TOGETHER):
                    part = np.resize(fit[start : start + TOGETHER], TOGETHER)
                    batch = collate([packed[index] for index in part], z, np.arange(TOGETHER), LENGTH)
                    found += losses(base, every[part], batch)[: len(fit) - start].tolist()
                print(f"{source:20} {mode:12} {name:20} {np.mean(found):.3f} ({len(found)} tasks)", flush=True)


if __name__ == "__main__":
    main(tyro.cli(RealLoss))
