"""How well do adapters fit real tasks that were not trained on: the cross-entropy of the right answers?

Command: python -m experiments.analyses.real_loss --tasks FOLDER --multitask runs/multitask/adapters
                                                                        (3 minutes on 2 cores with AMX)
Answer:  better than another task's adapter and, with the instance alone, than one LoRA for all tasks; the mean of 16
         wordings is better still (results/real_loss)

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
from experiments.tools.batches import batches_of, packed_tasks
from experiments.tools.results import RESULTS, write
from t2l_jax.data.batch import Batch
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import Task, named_like
from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import load_base
from t2l_jax.io.files import cache_folder
from t2l_jax.lora import Adapter, stack

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
    out: Path = RESULTS / "real_loss"


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
    aligned = model.adapters(Condition(z=held_out))
    found = {
        "one unseen wording": aligned,
        f"mean of {WORDINGS} wordings": model.adapters(Condition(z=means)),
        "misaligned": model.adapters(Condition(z=np.roll(held_out, 1, 0))),
        "none": jax.tree.map(jnp.zeros_like, aligned),
    }
    return (
        found if multitask is None else found | {"multi-task LoRA": stack([t2l_jax.load_peft(multitask)] * len(tasks))}
    )


def main(args: RealLoss) -> None:
    """Write a row for each model, prompt mode and kind of adapter."""
    rows = []
    tasks = named_like(read_tasks(args.tasks)["unseen tasks"], args.only)
    for source in args.models:
        model = t2l_jax.load(source)
        config, base = load_base(model.base)
        losses = task_losses(config)
        adapters = columns(model, tasks, args.multitask)
        for mode in ("instance", "instruction"):
            jobs = [(task.test, (task.held_out_wording(),) if mode == "instruction" else ()) for task in tasks]
            packed = packed_tasks(jobs, model.config.base, ROWS, LENGTH)
            fit = np.asarray([index for index, task in enumerate(packed) if any(task.rows)])
            z = np.zeros((len(fit), 1), np.float32)  # the adapters are made already
            batches = list(batches_of([packed[index] for index in fit], z, TOGETHER, LENGTH))
            for name, every in adapters.items():
                found: list[float] = []
                for places, count, batch in batches:
                    found += losses(base, every[fit[places]], batch)[:count].tolist()
                nats = round(float(np.mean(found)), 3)
                rows.append(
                    {"model": source, "prompt": mode, "adapter": name, "nats a token": nats, "tasks": len(found)}
                )
                print(rows[-1], flush=True)
    write(args.out, {"Cross-entropy of unseen real tasks": rows})


if __name__ == "__main__":
    main(tyro.cli(RealLoss))
