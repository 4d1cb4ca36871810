"""Bootstrap intervals (Efron, 1979) of a mean over tasks whose scores are means over examples.

A replicate draws as many tasks as there are, with replacement, each with all of its examples; where there is one task,
as many of its examples. So an interval holds for new tasks of the same kind, or for new examples of the one task. The
variance of the task means holds that of their examples already: to draw examples within drawn tasks would count it
twice (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
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
    values = tasks[0] if len(tasks) == 1 else np.array([scores.mean() for scores in tasks])
    drawn = np.random.default_rng(seed).integers(len(values), size=(count, len(values)))
    return values[drawn].mean(axis=1)


def interval(tasks: Sequence[Float[np.ndarray, "_"]]) -> Interval:
    """Mean over tasks, and its 95% percentile interval. The same scores give the same interval."""
    ends = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    low, high = np.percentile(replicates(tasks), ends)
    return Interval(float(np.mean([scores.mean() for scores in tasks])), float(low), float(high))
