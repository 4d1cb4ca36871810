"""Unseen combinations: reconstruction, SFT, or SFT that begins from reconstruction, in equal wall time?

Command: python -m experiments.studies.warm_start runs/library/adapters --minutes 5      (30 minutes on 2 cores)
Answer:  on unseen combinations half reconstruction, half SFT scores as SFT alone does, reconstruction alone less; all
         three read the description, and the warm start does not make SFT blind to it (results/warm_start)

All three have the tasks of the library and their descriptions. SFT reads their examples, reconstruction their adapters.
Each network is asked with the task's own held-out wording (aligned), with another task's (misaligned) and with a random
string (gibberish): one that is blind to the description scores the same with all three; the differences are paired by
task. The multi-task LoRA, trained as long on the same tasks, reads none.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.tools.distil import NET, RECIPE, ExactMatch, names_of
from experiments.tools.results import RESULTS, write
from experiments.tools.study import ADAPTED
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.family import build_task
from t2l_jax.data.family.split import combinations
from t2l_jax.data.selection import TaskSelection
from t2l_jax.data.tasks import Task, evenly
from t2l_jax.evaluation.bootstrap import interval
from t2l_jax.evaluation.plan import misalign, random_text
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.peft import load_peft
from t2l_jax.lora import stack
from t2l_jax.model import load
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import BaseRecipe, ComputeConfig, Recipe
from t2l_jax.training.run import run

SPLITS = ("train", "unseen combinations")
BLIND = "multi-task LoRA"


@dataclass(frozen=True)
class WarmStart:
    """Train the arms and write the table."""

    library: tyro.conf.Positional[Path]
    """Folder of the library's PEFT folders."""
    minutes: float = 10.0
    """Minutes of training of each arm, without compilation and validation, on a machine that does nothing else."""
    reconstruction_rate: float = 1.37
    """Steps of reconstruction in a second on such a machine; results/reconstruction_speed has 64 adapters a step."""
    sft_rate: float = 0.4
    """Steps of SFT in a second: 370 tokens a second, as runs of 40 steps on the quiet machine logged."""
    tasks: int = 32
    """Tasks of each split that are asked."""
    runs: Path = Path("runs/warm_start")
    """Folder of the runs."""
    out: Path = RESULTS / "warm_start"
    """Folder of the result."""


def recipes(library: Path) -> dict[str, BaseRecipe]:
    """The three ways to train, without their length."""
    sft = Recipe(
        tasks=("family",),
        encoder=ADAPTED,
        selection=TaskSelection(only=tuple(names_of(library, 10**6)), wordings=8),
        batch=BatchConfig(tasks=16, rows=1, length=64),
        compute=ComputeConfig("bf16-matmul", remat="none"),
        hypernet=HypernetConfig(dropout=0.0),
        objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, decay="cosine"),
    )
    reconstruction = replace(RECIPE, library=str(library), hypernet=NET, batch_tasks=32)
    return {"reconstruction": reconstruction, "SFT": sft, BLIND: replace(sft, trainee="multitask")}


def train(recipe: BaseRecipe, seconds: float, steps_per_second: float, folder: Path) -> Path:
    """Train for as many steps as take so long on a machine that does nothing else."""
    steps = round(seconds * steps_per_second)
    loop = LoopConfig(steps=steps, log_every=5, validate_every=steps, checkpoint_every=steps)
    return run(replace(recipe, loop=loop), folder)


def answers(asked: ExactMatch, model: Path, tasks: list[Task]) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Scores and cross-entropies of each task by condition."""
    if (model / "adapter_config.json").exists():
        shared = stack([load_peft(model)] * len(tasks))
        return {"aligned": asked.measure(shared)}
    net, own = load(model), [task.held_out_wording() for task in tasks]
    texts = {"aligned": own, "misaligned": misalign(own), "gibberish": [random_text(task.name, 0) for task in tasks]}
    return {name: asked.measure(net.generate(wordings)) for name, wordings in texts.items()}


def main(args: WarmStart) -> None:
    """Train, ask, compare."""
    ways, models = recipes(args.library), {}
    rates = {"reconstruction": args.reconstruction_rate, "SFT": args.sft_rate, BLIND: args.sft_rate}
    seconds = 60 * args.minutes
    for name, rate in rates.items():
        models[name] = train(ways[name], seconds, rate, args.runs / name.replace(" ", "-"))
    first = train(ways["reconstruction"], seconds / 2, args.reconstruction_rate, args.runs / "half")
    warm = replace(ways["SFT"], init_from=str(first), hypernet=replace(NET, standardised=False))
    models["reconstruction, then SFT"] = train(warm, seconds / 2, args.sft_rate, args.runs / "warm")
    names, tables = set(names_of(args.library, 10**6)), {"exact match in %": [], "cross-entropy in nats": []}
    for split in SPLITS:
        members = [m for m in combinations()[split] if split != "train" or m.name in names]
        tasks = [build_task(member, 1, 8, "test") for member in evenly(members, args.tasks)]
        asked = ExactMatch(tasks)
        for name, model in models.items():
            found = answers(asked, model, tasks)
            for which, (quantity, scale) in enumerate((("exact match in %", 100), ("cross-entropy in nats", 1))):
                scores = {key: [scale * task for task in measured[which]] for key, measured in found.items()}
                tables[quantity].append({"tasks": split, "trained by": name, **_row(scores)})
    title = f"{args.minutes:g} minutes each, {args.tasks} tasks a split, 95% over tasks"
    write(args.out, {f"{title}: {quantity}": rows for quantity, rows in tables.items()})


def _row(scores: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Means with intervals, and paired differences."""
    row: dict[str, Any] = {}
    for name in ("aligned", "misaligned", "gibberish"):
        row[name] = _shown(scores[name]) if name in scores else None
    for other in ("misaligned", "gibberish"):
        pairs = zip(scores["aligned"], scores.get(other, []), strict=False)
        differences = [own - theirs for own, theirs in pairs]
        row[f"aligned - {other}"] = _shown(differences) if differences else None
    return row


def _shown(scores: list[np.ndarray]) -> str:
    mean, low, high = interval(scores)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main(tyro.cli(WarmStart))
