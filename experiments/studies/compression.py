"""Figure 1 of the paper: how do error and score grow worse as one network holds more adapters?

Command: python -m experiments.studies.compression runs/library/adapters               (30 minutes on 2 cores)
Answer:  in 200 steps only the 16 adapters, each seen 200 times, are learned: L recovers 97% of their score, S 55%.
         Of 64, each seen 50 times, at most 5%; of 256, seen 12 times, nothing. Whether more steps or a larger network
         would help is not measured (results/compression)

Networks L, M and S read descriptions and reconstruct 16, 64 or 256 adapters, in equally many steps of 16
adapters. The exact match is that of the 16 tasks which are in all three parts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from experiments.tools.distil import NET, RECIPE, ExactMatch, distil, family_tasks, names_of, oracles
from experiments.tools.results import RESULTS, write


@dataclass(frozen=True)
class Compression:
    """Train a network for each size and form, write the table and draw it."""

    library: tyro.conf.Positional[Path]
    """Folder of the library's PEFT folders."""
    counts: tuple[int, ...] = (16, 64, 256)
    """Numbers of adapters. Each must hold the tasks of the first, as powers of two do."""
    steps: int = 200
    """Steps of each run."""
    runs: Path = Path("runs/distil")
    """Folder of the runs."""
    out: Path = RESULTS / "compression"
    """Folder of the result."""


def main(args: Compression) -> None:
    """Train, score and draw."""
    tasks, asked_names = family_tasks(), names_of(args.library, args.counts[0])
    asked = ExactMatch([tasks[name] for name in asked_names])
    targets = oracles(args.library, asked_names)
    oracle = asked.table(targets)["mean"]
    rows = []
    for head in ("L", "M", "S"):
        for count in args.counts:
            recipe = replace(RECIPE, hypernet=replace(NET, head=head), batch_tasks=16)
            names = names_of(args.library, count)
            run = distil(
                args.library, names, args.runs / f"compression-{head}-{count}-{args.steps}", recipe, args.steps
            )
            scores = asked.table(run.adapters(asked_names, tasks))
            ratio = run.parameters / (count * targets.spec.size)
            measured = {"relative error": round(run.relative_error, 3), **scores}
            recovered = {"recovered, %": round(100 * scores["mean"] / oracle, 1), "minutes": round(run.seconds / 60, 1)}
            rows.append(
                {"network": head, "adapters": count, "size, % of them": round(100 * ratio, 1)} | measured | recovered
            )
    write(args.out, {f"{args.steps} steps; exact match of {len(asked_names)} tasks in %, 95% over tasks": rows})
    draw(rows, args.out / "curves.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Relative error and recovered score over the number of adapters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("relative error", "recovered, %"), strict=True):
        for head in ("L", "M", "S"):
            own = [row for row in rows if row["network"] == head]
            axes.plot([row["adapters"] for row in own], [row[quantity] for row in own], marker="o", label=head)
        axes.set(xscale="log", xlabel="adapters", title=quantity)
        counts = sorted({row["adapters"] for row in rows})
        axes.set_xticks(counts, labels=map(str, counts), minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(tyro.cli(Compression))
