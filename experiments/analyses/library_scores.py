"""How good are the adapters of a library, and what did they cost?

Command: python -m experiments.analyses.library_scores runs/library runs/library_seeds        (5 minutes on 2 cores)
Answer:  256 LoRAs after 40 steps each, in 24 minutes: 56% of the test answers are exact, from one A or from many; one
         in six has none right, more than one in four all (results/library)

The runs are those of experiments/recipes/library.py. Exact match of the test examples that fit in a row; minutes are
those of the steps, from the rate that the run logged.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.tools.distil import ExactMatch, family_tasks, names_of, oracles, shown
from experiments.tools.results import RESULTS, write
from experiments.tools.study import records


@dataclass(frozen=True)
class LibraryScores:
    """Score libraries."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders of t2l train experiments/recipes/library.py."""
    out: Path = RESULTS / "library"
    """Folder of the result."""


def main(args: LibraryScores) -> None:
    """Write a row for each library, and the scores of each task."""
    tasks, rows = family_tasks(), []
    each: dict[str, dict[str, Any]] = {}
    for run in args.runs:
        names = names_of(run / "adapters", 10**6)
        asked = ExactMatch([tasks[name] for name in names])
        found = asked.of(oracles(run / "adapters", names))
        lines = [line for line in records(run) if "tokens_per_second" in line]
        rows.append(
            {
                "library": run.name,
                "adapters": len(names),
                "steps": len(lines),
                "minutes": round(sum(_seconds(line) for line in lines) / 60, 1),
                **shown(found),
            }
        )
        for name, scores in zip(names, found, strict=True):
            each.setdefault(name, {"task": name})[run.name] = round(100 * float(scores.mean()), 1)
    write(args.out, {"Exact match in %, 95% over tasks": rows, "Each task": list(each.values())})


def _seconds(line: dict[str, Any]) -> float:
    """Of a step that was logged alone: it holds as many tokens as its padding says."""
    return 256 * 64 * (1 - line["padding"]) / line["tokens_per_second"]


if __name__ == "__main__":
    main(tyro.cli(LibraryScores))
