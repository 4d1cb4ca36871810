"""What the studies share: a few recipes that differ in one thing, trained one after the other, and a table of them.

A study is a file of its own (study_tasks.py, study_wordings.py, study_heads.py, study_embedders.py, study_modes.py)
with its question, its command and its result. All use the built-in word tasks from fresh weights, since those are short
enough for a CPU; only the differences between the rows of a table mean something, not how good the best of them is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import Recipe, run
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    tasks=("words",),
    batch=BatchConfig(tasks=16, rows=1, length=36),  # one example of each task, the longest too
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=4e-4, warmup=0.1, decay="cosine"),
)


@dataclass(frozen=True)
class Study:
    """Train the recipes of a study and print their scores; started again, it goes on where it stopped."""

    out: Path = Path("runs/studies")
    """Folder of the runs."""
    steps: int = 100
    """Steps of each run."""
    batch_tasks: int = 16
    """Tasks of a step."""


def conduct(args: Study, name: str, variants: Mapping[str, Recipe]) -> None:
    """Train every variant in a folder of its own and print the table, in markdown."""
    rows = []
    for label, recipe in variants.items():
        loop = LoopConfig(steps=args.steps, validate_every=args.steps, checkpoint_every=50)
        folder = args.out / name / label.replace(" ", "-").replace("/", "-")
        run(replace(recipe, loop=loop, batch=replace(recipe.batch, tasks=args.batch_tasks)), folder)
        rows.append((label, *scores(folder, args.batch_tasks * recipe.batch.rows * recipe.batch.length)))
    sets = list(rows[0][1])
    columns = [f"{key.partition(', ')[0]}, {unit}" for key in sets for unit in ("nats", "exact %")]
    print(f"| {name} | {' | '.join(columns)} | seconds |\n|{'---|' * (len(columns) + 2)}")
    for label, found, seconds in rows:
        cells = [text for loss, exact in found.values() for text in (f"{loss:.3f}", f"{100 * exact:.1f}")]
        print(f"| {label} | {' | '.join(cells)} | {seconds:.0f} |")
    session = json.loads((folder / "environment.json").read_text())["sessions"][-1]
    machine = f"{session['devices']['kind']}, {session['host']['cpu']}"
    print(f"\n{args.steps} steps of {args.batch_tasks} tasks a row; {machine}")


def scores(folder: Path, places: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Of each validation set at the end the cross-entropy, and the share of answers whose every token is the likeliest.

    And the seconds that all steps took, of `places` tokens with padding, without what comes before and between.
    """
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found, seconds = {}, 0.0
    for record in records:
        if "tokens_per_second" in record:
            seconds += places * (1 - record["padding"]) / record["tokens_per_second"]
        for key in record:
            if key.endswith("/exact"):
                split = key.removesuffix("/exact")
                found[split] = (record[f"{split}/cross_entropy"], record[key])
    return found, seconds
