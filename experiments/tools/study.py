"""What the studies share: a few recipes that differ in one thing, trained from fresh weights, and a table of them.

A study is a file of its own (study_tasks.py, study_wordings.py, study_heads.py, study_embedders.py, study_modes.py)
with its question, its command and its result. All use the grown family; the results are those of a GPU, where a run of
300 steps takes half a minute. That machine had neither MiniLM nor the tasks: a script that was not kept gave these
files what `read_material` returns, read on another machine, with z rounded to float16. Two CPU cores take about a
second for 1,000 tokens: try `--steps 60 --seeds 1` there. Only the differences between the rows of a table mean
something, not how good the best of them is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2l_jax.data.batches import BatchConfig
from t2l_jax.io.published import ENCODER_FOLDER
from t2l_jax.model import PACKAGED
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.baselines import TaskChoice
from t2l_jax.training.objectives.sft import SftConfig
from t2l_jax.training.recipe import Recipe, run

ADAPTED = str(PACKAGED / "smollm2-family" / ENCODER_FOLDER)  # MiniLM as smollm2-family reads descriptions
RECIPE = Recipe(
    encoder=ADAPTED,
    tasks=("family",),
    choice=TaskChoice(wordings=8),
    batch=BatchConfig(tasks=64, rows=1, length=64),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=6e-4, warmup=0.1, decay="cosine"),
)


@dataclass(frozen=True)
class Study:
    """Train the recipes of a study and print their scores; started again, it goes on where it stopped."""

    out: Path = Path("runs/studies")
    """Folder of the runs."""
    steps: int = 300
    """Steps of each run."""
    seeds: int = 2
    """Runs of each recipe, which differ in their fresh weights and in what they draw."""


def conduct(args: Study, name: str, variants: Mapping[str, Recipe]) -> None:
    """Train every variant with every seed in a folder of its own and print the table, in markdown."""
    rows = []
    for label, recipe in variants.items():
        found = []
        for seed in range(args.seeds):
            loop = LoopConfig(steps=args.steps, seed=seed, validate_every=args.steps, checkpoint_every=args.steps)
            folder = args.out / name / f"{label}-{seed}".replace(" ", "-").replace("/", "-")
            run(replace(recipe, loop=loop), folder)
            found.append(scores(folder))
        rows.append((label, found))
    sets = list(rows[0][1][0])
    columns = [f"{key.partition(', ')[0]}, {unit}" for key in sets for unit in ("nats", "exact %")]
    print(f"| {name} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for label, found in rows:
        by_set = [np.asarray([run[key] for run in found]) for key in sets]  # [seeds, 2] of each set
        cells = [text for values in by_set for text in (cell(values[:, 0], 2), cell(100 * values[:, 1], 1))]
        print(f"| {label} | {' | '.join(cells)} |")
    session = json.loads((folder / "environment.json").read_text())["sessions"][-1]
    shape = recipe.batch
    print(
        f"\n{args.steps} steps of {shape.tasks} tasks x {shape.rows * shape.length} tokens, {args.seeds} seeds (mean, "
        f"lowest to highest); {session['devices']['kind']}, {session['host']['cpu']}"
    )


def cell(values: np.ndarray, digits: int) -> str:
    """The mean of one score over the seeds, and its range."""
    low, mean, high = (f"{value:.{digits}f}" for value in (values.min(), values.mean(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def scores(folder: Path) -> dict[str, tuple[float, float]]:
    """Of each validation set at the end: cross-entropy, and the share of answers whose every token is the likeliest."""
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for record in records:
        for key in record:
            if key.endswith("/exact"):
                split = key.removesuffix("/exact")
                found[split] = (record[f"{split}/cross_entropy"], record[key])
    return found
