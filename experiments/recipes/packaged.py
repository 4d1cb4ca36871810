"""How was the packaged hypernetwork, smollm2-family, made? The text encoder's adapter, then the stages, one by one.

Command: python -m experiments.recipes.packaged --tasks FOLDER --registry FILE    (seven hours of 2 CPU cores for all
         but the last stage, ten minutes of an H200 for that one; --dry-run prints the commands of each step)
Answer:  results/packaged has the stages, results/family and results/real_many the scores

FOLDER holds real tasks, FILE the original's registry (descriptions without data); without them the family alone
teaches. Started again, it goes on where it stopped. It ends with a model folder, published at 0.85 of alpha 16.
Not repeatable to the digit: stages up to 8 read the wordings of earlier commits, encoder1 of stages 3 and 4 was another
one, the last stage read z rounded to float16, and GPU drivers differ.
"""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.recipes import smollm2_family, smollm2_words, wording_encoder
from experiments.recipes.wording_encoder import WordingEncoder
from experiments.tools import mean_weights
from experiments.tools.mean_weights import MeanWeights
from experiments.tools.results import RESULTS, write
from experiments.tools.study import records
from t2l_jax import cli
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.family import phrasing
from t2l_jax.data.family.split import combinations
from t2l_jax.data.selection import TaskSelection
from t2l_jax.io import descriptions
from t2l_jax.io.descriptions import Descriptions, ExampleTask
from t2l_jax.io.published import MODEL_FOLDER
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.recipe import ComputeConfig, Recipe
from t2l_jax.training.run import run

EXAMPLES = (
    ExampleTask(description="Reply with the animal, in capital letters.", input="hammer, tiger, plum, blue"),
    ExampleTask(description="Sort the words alphabetically.", input="hammer, tiger, plum, blue"),
    ExampleTask(description="What is the second word? Put it in quotation marks.", input="hammer, tiger, plum, blue"),
    ExampleTask(description="Give the largest number.", input="14, 92, 37, 58"),
    ExampleTask(
        description="Tell me the city of the oldest person.", input="Ann, 34, Paris; Bob, 51, Rome; Eve, 29, Oslo"
    ),
)

# Paths are relative to the folder of the whole; there is no encoder2. Those from encoder3 on learn each task's mean z.
ENCODER1 = WordingEncoder(out=Path("encoder1"))
ENCODER3 = WordingEncoder(
    out=Path("encoder3"),
    init_from=Path("encoder1"),
    towards=Path("encoder1"),
    steps=1300,
    learning_rate=1e-3,
    real_share=0.1,
)
ENCODER4 = replace(
    ENCODER3,
    out=Path("encoder4"),
    init_from=Path("encoder3"),
    towards=Path("encoder3"),
    steps=700,
    learning_rate=7e-4,
)
ENCODER5 = replace(ENCODER4, out=Path("encoder5"), init_from=Path("encoder4"), steps=350)
ENCODER6 = replace(ENCODER4, out=Path("encoder6"), init_from=Path("encoder5"), towards=Path("encoder5"), steps=800)
ENCODER7 = replace(ENCODER6, out=Path("encoder7"), init_from=Path("encoder6"))
ENCODER8 = replace(ENCODER6, out=Path("encoder8"), init_from=Path("encoder7"), steps=1000)  # from here the registry
ENCODER9 = replace(
    ENCODER8,
    out=Path("encoder9"),
    init_from=Path("encoder8"),
    steps=1600,
    learning_rate=1e-3,
    real_share=0.2,
    registry_share=0.55,
)
ENCODER10 = MeanWeights((Path("encoder8"), Path("encoder9")), out=Path("encoder10"))
ENCODERS = (ENCODER1, ENCODER3, ENCODER4, ENCODER5, ENCODER6, ENCODER7, ENCODER8, ENCODER9, ENCODER10)
FROM_REGISTRY = (ENCODER8, ENCODER9)

LAST = smollm2_family.RECIPE
STAGE1 = replace(
    LAST,
    init_from="words",
    encoder="minilm",
    task_weights=(3.0, 1.0),
    selection=TaskSelection(),
    instruction_share=0.2,
    batch=BatchConfig(tasks=12, rows=1, length=128),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine"),
    loop=LoopConfig(steps=2000, stop_after=466, log_every=5, validate_every=500, checkpoint_every=50),
)
STAGE2 = replace(
    STAGE1,
    init_from="stage1",
    task_weights=(5.0, 1.0),
    instruction_share=0.0,
    batch=BatchConfig(tasks=24, rows=1, length=64),
    optimizer=replace(STAGE1.optimizer, learning_rate=3e-4),
    loop=replace(STAGE1.loop, steps=500, stop_after=441),
)
STAGE3 = replace(
    STAGE2,
    init_from="stage2",
    encoder="encoder1",
    loop=replace(STAGE2.loop, steps=1400, stop_after=161),
)
STAGE4 = replace(
    STAGE3,
    init_from="stage3",
    task_weights=(20.0, 1.0),
    optimizer=replace(STAGE3.optimizer, warmup=0.03),
    loop=replace(STAGE3.loop, steps=1000, stop_after=76),
)
STAGE5 = replace(
    STAGE4,
    init_from="stage4",
    selection=TaskSelection(wordings=16),
    optimizer=replace(STAGE4.optimizer, cooldown=120),
    loop=replace(STAGE4.loop, steps=800, stop_after=420, seed=5),
)
STAGE6 = replace(
    STAGE5,
    init_from="stage5",
    task_weights=(6.0, 1.0),
    instruction_share=0.15,
    optimizer=replace(STAGE5.optimizer, learning_rate=2.5e-4, warmup=0.02, cooldown=0),
    loop=replace(STAGE5.loop, steps=520, stop_after=None, seed=6, validate_every=520),
)
STAGE7 = replace(
    STAGE6,
    init_from="stage6",
    encoder="encoder3",
    optimizer=replace(STAGE6.optimizer, learning_rate=3e-4, warmup=0.03),
    loop=replace(STAGE6.loop, steps=1050, seed=7, validate_every=1050),
)
STAGE8 = replace(
    STAGE7,
    init_from="stage7",
    encoder="encoder5",
    compute=ComputeConfig(precision="bf16-matmul"),
    optimizer=replace(STAGE7.optimizer, warmup=0.02),
    loop=replace(STAGE7.loop, steps=2600, stop_after=2300, seed=8, validate_every=2600),
)
STAGE9 = replace(
    LAST, init_from="stage8", encoder="encoder5", task_weights=(4.0, 1.0), loop=replace(LAST.loop, stop_after=2931)
)
STAGES = {
    "words": smollm2_words.RECIPE,
    "stage1": STAGE1,
    "stage2": STAGE2,
    "stage3": STAGE3,
    "stage4": STAGE4,
    "stage5": STAGE5,
    "stage6": STAGE6,
    "stage7": STAGE7,
    "stage8": STAGE8,
    "stage9": STAGE9,
}
PUBLISHED = ("stage9", "encoder10", 13.6)


@dataclass(frozen=True)
class Packaged:
    """Make the packaged model."""

    tasks: Path | None = None
    """Folder of real tasks."""
    registry: Path | None = None
    """The original's registry, one task a line (gzip)."""
    runs: Path = Path("runs/packaged")
    """Folder of all steps; its model/ is the result."""
    stages: tuple[str, ...] = ()
    """Some of the steps: encoder1 ... encoder10, words, stage1 ... stage9, publish. Default: all."""
    dry_run: bool = False
    """Print the commands and do nothing."""
    out: Path = RESULTS / "packaged"


def encoder_steps(args: Packaged) -> dict[str, WordingEncoder | MeanWeights]:
    """The steps of the text encoder, with paths as `args` has them."""
    found: dict[str, WordingEncoder | MeanWeights] = {}
    for step in ENCODERS:
        out = args.runs / step.out
        if isinstance(step, MeanWeights):
            found[step.out.name] = MeanWeights(tuple(args.runs / folder for folder in step.folders), out)
            continue
        paths = {name: getattr(step, name) for name in ("init_from", "towards")}
        placed = {name: None if path is None else args.runs / path for name, path in paths.items()}
        registry = args.registry if step in FROM_REGISTRY else None
        found[step.out.name] = replace(step, out=out, tasks=args.tasks, registry=registry, **placed)
    return found


def train_steps(args: Packaged) -> dict[str, Recipe]:
    """The recipes of the stages, with paths and tasks as `args` has them."""
    found = {}
    for name, recipe in STAGES.items():
        if recipe.init_from is not None:
            encoder = recipe.encoder if recipe.encoder == "minilm" else str(args.runs / recipe.encoder)
            recipe = replace(recipe, init_from=str(args.runs / recipe.init_from / MODEL_FOLDER), encoder=encoder)
            real = args.tasks is not None
            recipe = replace(
                recipe,
                tasks=("family", str(args.tasks)) if real else ("family",),
                task_weights=recipe.task_weights if real else (),
            )
        found[name] = recipe
    return found


def flags(settings: Any, default: Any, prefix: str = "") -> list[str]:
    """The command-line options that make `settings` of `default`."""
    words = []
    for field in fields(settings):
        new, old = getattr(settings, field.name), getattr(default, field.name)
        name = prefix + field.name.replace("_", "-")
        if new == old:
            continue
        if is_dataclass(new):
            words += flags(new, old, "" if field.name == "loop" else f"{name}.")
        elif isinstance(new, bool):
            words.append(f"--{name}" if new else f"--{prefix}no-{name.removeprefix(prefix)}")
        else:
            words += [f"--{name}", *map(str, new if isinstance(new, tuple) else (new,))]
    return words


def command(name: str, step: Any, folder: Path) -> list[str]:
    """What one would type for a step."""
    if isinstance(step, MeanWeights):
        return ["python", "-m", mean_weights.__name__, *map(str, step.folders), "--out", str(step.out)]
    if isinstance(step, WordingEncoder):
        own = flags(step, WordingEncoder(out=step.out))
        return ["python", "-m", wording_encoder.__name__, "--out", str(step.out), *own]
    if name == "words":
        return ["t2l", "train", "experiments/recipes/smollm2_words.py", "--out", str(folder)]
    return ["t2l", "train", "experiments/recipes/smollm2_family.py", "--out", str(folder), *flags(step, LAST)]


def stage_table(args: Packaged, names: Sequence[str]) -> list[dict[str, Any]]:
    """What each stage trained on, and its training loss at the end: the mean of the last tenth of its steps."""
    rows = []
    for name in names:
        recipe = STAGES[name]
        last = recipe.loop.last
        lines = [line for line in records(args.runs / name) if "cross_entropy" in line]
        ending = [line["cross_entropy"] for line in lines if 0.9 * last < line["step"] <= last]
        rows.append(
            {
                "stage": name,
                "begins from": recipe.init_from,
                "encoder": recipe.encoder,
                "steps": last,
                "tasks a step": recipe.batch.tasks,
                "tokens a task": recipe.batch.length,
                "learning rate": recipe.optimizer.learning_rate,
                "cross-entropy at the end": round(float(np.mean(ending)), 3),
            }
        )
    return rows


def describe(folder: Path) -> None:
    """Write what a published model says of its training: descriptions of the family, and examples to try.

    Of every other task, so that the package stays small; none of the real tasks, as they are not ours to publish.
    """
    trained = tuple(phrasing.descriptions(member, 1)[0] for member in combinations()["train"][::2])
    descriptions.write(folder, Descriptions(trained=trained, examples=EXAMPLES))


def main(args: Packaged) -> None:
    """Run the steps that are not done, publish, and write the table."""
    steps: dict[str, Any] = {**encoder_steps(args), **train_steps(args)}
    if unknown := [name for name in args.stages if name not in (*steps, "publish")]:
        raise SystemExit(f"--stages: there is no step {unknown[0]}: choose among {', '.join(steps)}, publish")
    source, encoder, alpha = PUBLISHED
    model = args.runs / MODEL_FOLDER
    publish = [
        *("publish", str(args.runs / source), "--encoder", str(args.runs / encoder)),
        *("--alpha", str(alpha), "--out", str(model)),
    ]
    for name in args.stages or (*steps, "publish"):
        folder = args.runs / name
        done = {"publish": model}.get(name, folder / MODEL_FOLDER if name in STAGES else folder)
        if args.dry_run:
            print(shlex.join(["t2l", *publish] if name == "publish" else command(name, steps[name], folder)))
        elif done.exists():
            print(f"{name}: {done} is there already")
        elif name == "publish":
            cli.main(publish)
            describe(model)
        elif name in STAGES:
            run(steps[name], folder)
        elif isinstance(steps[name], MeanWeights):
            mean_weights.main(steps[name])
        else:
            wording_encoder.main(steps[name])
    if not args.dry_run and model.exists():
        write(args.out, {"Stages": stage_table(args, list(STAGES))})
        shutil.copy(args.runs / source / "curves.png", args.out / "curves.png")


if __name__ == "__main__":
    main(tyro.cli(Packaged))
