"""Bootstrap intervals (Efron, 1979) of a mean over tasks whose scores are means over examples.

A replicate draws as many tasks as there are, with replacement, and within every drawn task as many of its examples. So
an interval holds for new tasks of the same kind and for new examples; of one task alone it is over its examples. For T
tasks with n examples each, the variance of the replicates is, in population variances,

    (variance of the task means + mean over tasks of the variance within a task / n) / T
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

REPLICATES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and the ends of its 95% interval."""

    mean: float
    low: float
    high: float


def replicates(tasks: Sequence[Float[np.ndarray, "_"]], count: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """`count` draws of the mean over tasks of the mean over examples; `tasks` holds each task's scores."""
    rng = np.random.default_rng(seed)
    means = np.empty((len(tasks), count))
    for mean, scores in zip(means, tasks, strict=True):
        mean[:] = scores[rng.integers(len(scores), size=(count, len(scores)))].mean(axis=1)
    # Column by column the means are replicates of their own, so any column may stand for any drawn task.
    drawn = rng.integers(len(tasks), size=(count, len(tasks)))
    return means[drawn, rng.integers(count, size=drawn.shape)].mean(axis=1)


def interval(tasks: Sequence[Float[np.ndarray, "_"]]) -> Interval:
    """Mean over tasks, and its 95% percentile interval. The same scores give the same interval."""
    ends = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    low, high = np.percentile(replicates(tasks), ends)
    return Interval(float(np.mean([scores.mean() for scores in tasks])), float(low), float(high))
