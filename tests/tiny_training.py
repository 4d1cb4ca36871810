"""A tiny training problem: a random decoder, four tasks with a description each, and what trains on them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import BatchConfig, Sampler, TokenTable, TrainingTask, collate, pack, stack_conditions, take
from t2l_jax.data.prompts import Encoded
from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.hypernet import Condition, HypernetConfig, TaskEncoderConfig, Variables
from t2l_jax.training import Batches, LoopConfig, OptimizerConfig, RunConfig, train
from t2l_jax.training.objectives import Objective, Sft, SftConfig
from t2l_jax.training.trackers import JsonLines, TensorBoard
from t2l_jax.training.trainees import TextHypernetwork, Trainee

CONFIG = DecoderConfig(
    vocab_size=64,
    width=16,
    num_layers=2,
    mlp_width=24,
    attention=AttentionConfig(2, 1, 8, layers=(LayerAttention(),) * 2),
)
SPEC = CONFIG.lora_spec(rank=2)
NET = HypernetConfig(TaskEncoderConfig(dim=4), latent=8, head_in=16)
TRAINEE = TextHypernetwork(NET, SPEC)
PAPER = SftConfig()
LOOP = LoopConfig(steps=8, log_every=4, validate_every=5, checkpoint_every=3, seed=1)
SHAPE = BatchConfig(tasks=2, rows=1, length=12)
FAST = OptimizerConfig(learning_rate=0.02, warmup=0.1)


def make_base() -> dict:
    """Random parameters of the tiny decoder, made without compiling its initialisation."""
    shapes = jax.eval_shape(lambda: Decoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def make_tasks() -> list[TrainingTask]:
    """Four tasks: whatever the prompt, task n answers with token 40 + n."""
    rng = np.random.default_rng(0)
    prompts = [tuple(map(int, rng.integers(40, size=4))) for _ in range(6)]
    return [
        TrainingTask(
            f"t{n}",
            Condition(2 * np.eye(4, dtype=np.float32)[[n]], np.asarray([n], np.int32)),
            {"instance": TokenTable.of([Encoded(p, (40 + n, 2)) for p in prompts])},
        )
        for n in range(4)
    ]


def validation_batch() -> Batch:
    tasks = make_tasks()
    rows = [pack(task.examples["instance"], np.arange(2), 1, SHAPE.length) for task in tasks]
    return collate(rows, stack_conditions([take(task.conditions, 0) for task in tasks]), SHAPE.length)


def sampler(shape: BatchConfig = SHAPE, repeat: int = 1) -> Sampler:
    """Batches of the tasks, each of which is there `repeat` times."""
    tasks = [
        replace(task, conditions=replace(task.conditions, task=np.asarray([place], np.int32)))
        for place, task in enumerate(make_tasks() * repeat)
    ]
    return Sampler(tasks, shape, LOOP.seed)


def objective(config: SftConfig = PAPER, base: dict | None = None) -> Sft:
    return Sft(base or make_base(), Decoder(CONFIG), config)


def run(
    folder: Path,
    draw: Callable[[int], Batch] | None = None,
    *,
    trainee: Trainee = TRAINEE,
    learn: Objective | None = None,
    validation: dict[str, list[Batch]] | None = None,
    **changes: Any,
) -> Variables:
    """Train in a folder, as LOOP and FAST say unless changed; {} for no validation. No picture: it takes a second."""
    sets = {"seen": [validation_batch()]} if validation is None else validation
    how = RunConfig(**{"loop": LOOP, "optimizer": FAST, "trackers": (JsonLines, TensorBoard), **changes})
    return train(trainee, learn or objective(), Batches(draw or sampler().draw, sets), folder, how)


def curves(folder: Path) -> list[dict]:
    """What metrics.jsonl says, without how fast it went."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_per_second")} for line in lines]
