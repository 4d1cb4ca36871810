"""What the studies share: recipes that differ in one thing, trained from fresh weights on the family, and their table.

On a GPU a run of 300 steps takes half a minute. Two CPU cores take about a second for 1,000 tokens: try `--steps 60
--seeds 1` there. Only the differences between the rows of a table mean something, not how good the best of them is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tools.results import RESULTS, write
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.io.published import ENCODER_FOLDER, PRETRAINED
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.run import run

ADAPTED = str(PRETRAINED / "smollm2-family" / ENCODER_FOLDER)  # MiniLM as smollm2-family reads descriptions
RECIPE = Recipe(
    encoder=ADAPTED,
    tasks=("family",),
    selection=TaskSelection(wordings=8),
    batch=BatchConfig(tasks=64, rows=1, length=64),
    objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=6e-4, warmup=0.1, decay="cosine"),
)


@dataclass(frozen=True)
class Study:
    """Train the recipes of a study and write their scores; started again, it goes on where it stopped."""

    runs: Path = Path("runs/studies")
    """Folder of the runs."""
    steps: int = 300
    """Steps of each run."""
    seeds: int = 2
    """Runs of each recipe, which differ in their fresh weights and in what they draw."""
    out: Path | None = None
    """Folder of the result. Default: experiments/results/NAME."""


def conduct(args: Study, name: str, varied: str, variants: Mapping[str, Recipe]) -> None:
    """Train every variant with every seed in a folder of its own and write the table."""
    rows = []
    for label, recipe in variants.items():
        found = []
        for seed in range(args.seeds):
            loop = LoopConfig(steps=args.steps, seed=seed, validate_every=args.steps, checkpoint_every=args.steps)
            folder = args.runs / name / f"{label}-{seed}".replace(" ", "-").replace("/", "-")
            run(replace(recipe, loop=loop), folder)
            found.append(scores(records(folder)))
        for split in found[0]:
            values = np.asarray([one[split] for one in found])  # [seeds, 2]
            measured = {**spread("nats", values[:, 0], 2), **spread("exact, %", 100 * values[:, 1], 1)}
            rows.append({varied: label, "validated on": split, **measured})
    shape = recipe.batch
    title = f"{args.steps} steps of {shape.tasks} tasks x {shape.rows * shape.length} tokens, {args.seeds} seeds"
    write(args.out or RESULTS / name, {title: rows})


def spread(name: str, values: Sequence[float], digits: int) -> dict[str, float | None]:
    """Mean, lowest and highest over the seeds; of one seed the mean alone."""
    low, mean, high = (round(float(value), digits) for value in (np.min(values), np.mean(values), np.max(values)))
    ends = (low, high) if len(values) > 1 else (None, None)
    return {name: mean, f"{name}: lowest": ends[0], f"{name}: highest": ends[1]}


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Of each validation set at the end: cross-entropy, and the share of answers whose every token is the likeliest."""
    found = {}
    for record in lines:
        for key in record:
            if key.endswith("/exact"):
                split = key.removesuffix("/exact")
                found[split.partition(", ")[0]] = (record[f"{split}/cross_entropy"], record[key])
    return found
