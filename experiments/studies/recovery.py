"""Table 1 of the paper: does one network, trained by reconstruction, recover the library's scores on its own tasks?

Command: python -m experiments.studies.recovery runs/library/adapters                  (30 minutes on 2 cores)
Answer:  see results/recovery

The library is that of experiments/recipes/library.py. Each row is trained on the same part of it, from one-hot task
identities or from descriptions, and asked with a wording that it was not trained on. Loss: gram.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments.tools.distil import NET, RECIPE, ExactMatch, distil, family_tasks, names_of, oracles
from experiments.tools.results import RESULTS, write


@dataclass(frozen=True)
class Recovery:
    """Train the six networks and write the table."""

    library: tyro.conf.Positional[Path]
    """Folder of the library's PEFT folders."""
    tasks: int = 16
    """Number of tasks."""
    steps: int = 200
    """Steps of each run, with all tasks in each."""
    runs: Path = Path("runs/distil")
    """Folder of the runs."""
    out: Path = RESULTS / "recovery"
    """Folder of the result."""


def main(args: Recovery) -> None:
    """Score base model, library and networks."""
    tasks, names = family_tasks(), names_of(args.library, args.tasks)
    asked = ExactMatch([tasks[name] for name in names])
    targets = oracles(args.library, names)
    oracle = asked.table(targets)
    rows = [
        {"adapters": "none", "parameters": None, **asked.table(None), "recovered, %": None, "relative error": None},
        {
            "adapters": "the library's",
            "parameters": args.tasks * targets.spec.size,
            **oracle,
            "recovered, %": 100.0,
            "relative error": 0.0,
        },
    ]
    for trainee in ("one-hot", "hypernet"):
        for head in ("L", "M", "S"):
            recipe = replace(RECIPE, trainee=trainee, hypernet=replace(NET, head=head))
            run = distil(
                args.library, names, args.runs / f"{trainee}-{head}-{args.tasks}-{args.steps}", recipe, args.steps
            )
            scores = asked.table(run.adapters(names, tasks))
            rows.append(
                {
                    "adapters": f"{head}, {'one-hot' if trainee == 'one-hot' else 'text'}",
                    "parameters": run.parameters,
                    **scores,
                    "recovered, %": round(100 * scores["mean"] / oracle["mean"], 1),
                    "relative error": round(run.relative_error, 3),
                    "minutes": round(run.seconds / 60, 1),
                }
            )
    rows = [{"minutes": None, **row} for row in rows]
    rows = [{key: row[key] for key in rows[-1]} for row in rows]
    write(args.out, {f"{args.tasks} training tasks, {args.steps} steps; exact match in %, 95% over tasks": rows})


if __name__ == "__main__":
    main(tyro.cli(Recovery))
