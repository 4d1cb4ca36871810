"""Which rank: task LoRAs of rank 2, 4, 8 and 16, one for each of 8 training tasks and 8 unseen combinations.

Command: python -m experiments.studies.ranks                                         (7 minutes on 2 cores with AMX)
Answer:  rank 8 is as good as 16 on test examples; the higher the rank, the faster at first (results/ranks)

The recipe is that of oracles.py, with 45 steps of one row of 64 tokens for each task. The packaged hypernetwork writes
rank 8: with 16 its head would be twice as large.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from experiments.recipes.oracles import RECIPE
from experiments.tools.results import RESULTS, write
from experiments.tools.study import records, scores
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.training.run import run

STEPS = 45
SHORT = replace(
    RECIPE,
    selection=TaskSelection(splits=("train", "unseen combinations"), most=8),
    instruction_share=0.0,
    batch=BatchConfig(tasks=16, rows=1, length=64),
    compute=replace(RECIPE.compute, precision="bf16-matmul"),
    loop=replace(RECIPE.loop, steps=STEPS, log_every=1, validate_every=STEPS),
)


@dataclass(frozen=True)
class Ranks:
    """Train task LoRAs of several ranks."""

    ranks: tuple[int, ...] = (2, 4, 8, 16)
    runs: Path = Path("runs/ranks")
    """Folder of the runs."""
    out: Path = RESULTS / "ranks"


def main(args: Ranks) -> None:
    """Train and write the table."""
    rows = []
    for rank in args.ranks:
        folder = args.runs / str(rank)
        run(replace(SHORT, lora=replace(SHORT.lora, rank=rank)), folder)
        lines = records(folder)
        losses = {line["step"]: line["cross_entropy"] for line in lines if "cross_entropy" in line}
        ((entropy, exact),) = scores(lines).values()
        rows.append(
            {
                "rank": rank,
                "steps 6 to 10, nats": round(float(np.mean([losses[step] for step in range(6, 11)])), 2),
                "steps 41 to 45, nats": round(float(np.mean([losses[step] for step in range(41, 46)])), 3),
                "test examples, nats": round(entropy, 3),
                "test examples, exact, %": round(100 * exact, 1),
            }
        )
    write(args.out, {f"16 LoRAs of q and v, {STEPS} steps of a row of 64 tokens each": rows})


if __name__ == "__main__":
    main(tyro.cli(Ranks))
