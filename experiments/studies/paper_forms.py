"""What do the forms of the paper's data change: prompts with the definition, joined answers, cut prompts?

Command: python -m experiments.studies.paper_forms FOLDER --steps 20                         (20 minutes on 2 cores)
Answer:  prompts with the definition help where the definition is asked with, by 0.1 nats; joined answers and cut
         prompts change less than a run of one seed can tell (results/paper_forms)

Every row differs from the first in one thing, the last in all. All are scored alike on unseen tasks: on the first right
answer of test examples that fit in a row, after a description and after the definition. A task of FOLDER without a
definition takes its first description, which in Super-NaturalInstructions is the definition.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro
import yaml

import t2l_jax
from experiments.tools.results import RESULTS, write
from experiments.tools.study import RECIPE, spread
from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.prompts import PromptConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import named_like
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.files import cache_folder
from t2l_jax.training import LoopConfig
from t2l_jax.training.material import Reader
from t2l_jax.training.objectives import Sft, SftConfig
from t2l_jax.training.recipe import ComputeConfig, Recipe
from t2l_jax.training.run import run
from t2l_jax.training.trainees import TextHypernetwork

SHAPE = BatchConfig(tasks=8, rows=1, length=256)
OURS = replace(
    RECIPE,
    instruction_share=1.0,
    batch=SHAPE,
    compute=ComputeConfig("bf16-matmul"),
    selection=TaskSelection(wordings=16),
)
VARIANTS: dict[str, tuple[PromptConfig, str]] = {
    "ours": (PromptConfig(), "drop"),
    "definition": (PromptConfig(instruction="definition"), "drop"),
    "joined answers": (PromptConfig(answers="joined"), "drop"),
    "cut prompts": (PromptConfig(), "cut"),
    "the paper's": (PromptConfig(instruction="definition", answers="joined"), "cut"),
}


@dataclass(frozen=True)
class PaperForms:
    """Train each form for the same steps and score all on unseen tasks."""

    tasks: tyro.conf.Positional[Path]
    """Folder of real tasks."""
    only: tuple[str, ...] = ("sni_*", "ni_*", "ii_*")
    steps: int = 100
    """Steps of each run."""
    seeds: int = 1
    """Runs of each form."""
    runs: Path = Path("runs/paper_forms")
    """Folder of the runs, and of the tasks with their definitions."""
    out: Path = RESULTS / "paper_forms"


def with_definitions(folder: Path, out: Path) -> Path:
    """A copy of the task.yaml files that have a definition each, beside links to the examples."""
    for path in sorted(folder.glob("*/task.yaml")):
        fields = yaml.safe_load(path.read_text())
        copy = out / path.parent.name
        copy.mkdir(parents=True, exist_ok=True)
        (copy / "task.yaml").write_text(yaml.safe_dump({"definition": fields["descriptions"][0], **fields}))
        for name in ("train.jsonl", "test.jsonl"):
            if not (copy / name).exists():
                (copy / name).symlink_to((path.parent / name).resolve())
    return out


def held_out(tasks: Path, only: tuple[str, ...], model: t2l_jax.Model) -> dict[str, list[Batch]]:
    """Validation batches of the unseen tasks by prompt mode."""
    tokenizer, splits = load_tokenizer(model.base), read_tasks(str(tasks))
    unseen = named_like(splits["unseen tasks"], only)
    reader = Reader(TextHypernetwork, tokenizer, model.encoder, ("instruction", "definition"), cache_folder())
    return reader.validation_batches({"unseen": unseen}, SHAPE, {})


def scores(
    model: t2l_jax.Model, objective: Sft, batches: Mapping[str, list[Batch]]
) -> Iterator[tuple[str, np.ndarray]]:
    """For each prompt mode the cross-entropy and the share of answers whose every token is the likeliest."""

    @jax.jit
    def score(objective: Sft, adapters: t2l_jax.Adapter, batch: Batch) -> dict[str, jax.Array]:
        return objective.loss(adapters, batch, None)[1]

    for name, some in batches.items():
        found = [score(objective, model.adapters(batch.condition), batch) for batch in some]
        values = [[float(one["cross_entropy"]), float(one["exact"])] for one in found]
        yield name.rpartition(", ")[2], np.mean(values, axis=0)


def main(args: PaperForms) -> None:
    """Write a row for each form and prompt mode."""
    tasks = with_definitions(args.tasks, args.runs / "tasks")
    rows, batches, objective = [], None, None
    for label, (prompts, too_long) in VARIANTS.items():
        found: dict[str, list[np.ndarray]] = {}
        for seed in range(args.seeds):
            loop = LoopConfig(steps=args.steps, seed=seed, validate_every=args.steps, checkpoint_every=args.steps)
            model = t2l_jax.load(
                run(recipe_of(tasks, args.only, prompts, too_long, loop), folder_of(args, label, seed))
            )
            if batches is None or objective is None:
                batches = held_out(tasks, args.only, model)
                config, base = load_base(model.base)
                objective = Sft(base, OURS.compute.decoder(config), SftConfig(weight_l2=0.0))
            for mode, values in scores(model, objective, batches):
                found.setdefault(mode, []).append(values)
        for mode, runs in found.items():
            measured = np.asarray(runs)
            rows.append(
                {
                    "trained on": label,
                    "asked with": mode,
                    **spread("nats", measured[:, 0], 3),
                    **spread("exact, %", 100 * measured[:, 1], 1),
                }
            )
            print(rows[-1], flush=True)
    write(args.out, {f"{args.steps} steps of 8 tasks x 256 tokens, {args.seeds} seeds": rows})


def recipe_of(tasks: Path, only: tuple[str, ...], prompts: PromptConfig, too_long: str, loop: LoopConfig) -> Recipe:
    """The recipe of a form."""
    return replace(
        OURS,
        tasks=(str(tasks),),
        selection=replace(OURS.selection, only=only),
        prompts=prompts,
        batch=replace(SHAPE, too_long=too_long),
        loop=loop,
    )


def folder_of(args: PaperForms, label: str, seed: int) -> Path:
    """The run folder of a form and seed."""
    return args.runs / f"{label}-{seed}".replace(" ", "-").replace("'", "")


if __name__ == "__main__":
    main(tyro.cli(PaperForms))
