"""Bootstrap intervals (Efron, 1979) of a mean over tasks whose scores are means over examples.

`over_tasks` draws as many tasks as there are, with replacement, each with all of its examples: the interval holds for
new tasks of the same kind. The variance of the task means holds that of their examples already: to draw examples within
drawn tasks would count it twice (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
`over_examples` keeps the tasks and draws of each one's examples one less than there are: the interval holds for new
examples of these very tasks, and how far apart the tasks are is not in it. The mean of n - 1 draws varies as the mean
of n new examples is estimated to (by the unbiased variance over n), that of n draws less, by half where n is 2. A
task's single example says nothing of its spread, and adds no width.
"""

from collections.abc import Callable, Sequence
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


def over_tasks(tasks: Sequence[Float[np.ndarray, " _"]], count: int = REPLICATES) -> np.ndarray:
    """`count` draws of the mean over drawn tasks of the mean over examples; `tasks` holds each task's scores."""
    return _draw(np.array([scores.mean() for scores in tasks]), len(tasks), count, np.random.default_rng(0))


def over_examples(tasks: Sequence[Float[np.ndarray, " _"]], count: int = REPLICATES) -> np.ndarray:
    """`count` draws of the mean over all tasks of the mean over drawn examples."""
    rng = np.random.default_rng(0)
    return np.mean([_draw(scores, max(1, len(scores) - 1), count, rng) for scores in tasks], axis=0)


def _draw(values: Float[np.ndarray, " _"], size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` means of `size` values, drawn with replacement; a single value has no spread."""
    return values[rng.integers(len(values), size=(count, size))].mean(axis=1)


def interval(tasks: Sequence[Float[np.ndarray, " _"]], draw: Callable[..., np.ndarray] = over_tasks) -> Interval:
    """Mean over tasks, and its 95% percentile interval. The same scores give the same interval."""
    ends = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    low, high = np.percentile(draw(tasks), ends)
    return Interval(float(np.mean([scores.mean() for scores in tasks])), float(low), float(high))
