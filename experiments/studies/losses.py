"""Which loss of reconstruction survives that factors are not unique?

Command: python -m experiments.studies.losses runs/library/adapters runs/library_seeds/adapters (15 minutes on 2 cores)
Answer:  see results/losses

B A = (B R⁻¹)(R A): adapters of the same deltas may have any factors. In the first library all LoRAs started from one A
(their factors are comparable), in the second each from its own. A network of form L learns the same tasks of both with
each loss, from one-hot identities; what counts is the error of the deltas and the exact match, which no loss is given.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments.tools.distil import RECIPE, ExactMatch, distil, family_tasks, names_of, oracles
from experiments.tools.results import RESULTS, write
from t2l_jax.training.objectives import ReconstructionConfig


@dataclass(frozen=True)
class Losses:
    """Train with each loss on both libraries and write the table."""

    one_seed: tyro.conf.Positional[Path]
    """Library of LoRAs that started from one A."""
    seeds: tyro.conf.Positional[Path]
    """Library of LoRAs that started from their own A."""
    tasks: int = 16
    """Number of tasks."""
    steps: int = 120
    """Steps of each run, with all tasks in each."""
    runs: Path = Path("runs/distil")
    """Folder of the runs."""
    out: Path = RESULTS / "losses"
    """Folder of the result."""


def main(args: Losses) -> None:
    """Train and score."""
    tasks, names = family_tasks(), names_of(args.one_seed, args.tasks)
    asked = ExactMatch([tasks[name] for name in names])
    rows = []
    for label, library in (("one", args.one_seed), ("each its own", args.seeds)):
        rows.append({"A's seed": label, "loss": "none: the library", "relative error": 0.0, "minutes": None,
                     **asked.table(oracles(library, names))})  # fmt: skip
        for loss in ("factors", "canonical", "delta", "gram"):
            recipe = replace(RECIPE, trainee="one-hot", objective=ReconstructionConfig(loss))
            folder = args.runs / f"{loss}-{label.replace(' ', '-')}-{args.tasks}-{args.steps}"
            run = distil(library, names, folder, recipe, args.steps)
            scores = asked.table(run.adapters(names, tasks))
            error, minutes = round(run.relative_error, 3), round(run.seconds / 60, 1)
            rows.append({"A's seed": label, "loss": loss, "relative error": error, "minutes": minutes, **scores})
    write(args.out, {f"{args.tasks} training tasks, {args.steps} steps; exact match in %, 95% over tasks": rows})


if __name__ == "__main__":
    main(tyro.cli(Losses))
