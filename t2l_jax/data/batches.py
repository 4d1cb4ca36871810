"""SFT batches: tasks first, then examples, then one of the task's descriptions. Step n is a function of (seed, n)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from t2l_jax.data.prompts import Encoded
from t2l_jax.errors import UserError
from t2l_jax.objectives import Batch

BUCKET = 8  # lengths are rounded up to multiples of this: few shapes, few compilations


@dataclass(frozen=True)
class TrainingTask:
    """What training reads of a task: the embeddings of its descriptions [n, z] and its encoded examples."""

    name: str
    embeddings: Float[np.ndarray, "n z"]
    examples: tuple[Encoded, ...]


@dataclass(frozen=True)
class Sampler:
    """Draws batches of `tasks_per_batch` x `examples_per_task` rows."""

    tasks: Sequence[TrainingTask]
    tasks_per_batch: int
    examples_per_task: int
    seed: int
    max_length: int = 1024

    def __post_init__(self) -> None:
        if self.tasks_per_batch > len(self.tasks):
            raise UserError(
                f"a batch of {self.tasks_per_batch} tasks needs as many training tasks, there are {len(self.tasks)}: "
                "lower --tasks-per-batch or add tasks"
            )
        for task in self.tasks:
            longest = max((len(e.prompt) + len(e.answer) for e in task.examples), default=0)
            if not task.examples or longest > self.max_length:
                raise UserError(
                    f"task {task.name}: {len(task.examples)} examples, the longest of {longest} tokens; "
                    f"training needs at least one and at most {self.max_length} tokens each"
                )

    def draw(self, step: int) -> Batch:
        """The batch of a step: the same for the same seed and step, whatever came before."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.tasks), self.tasks_per_batch, replace=False)
        rows, z = [], []
        for index in chosen:
            task = self.tasks[index]
            rows.append([task.examples[i] for i in rng.integers(len(task.examples), size=self.examples_per_task)])
            z.append(task.embeddings[rng.integers(len(task.embeddings))])
        return collate(rows, np.stack(z), chosen)


def collate(rows: Sequence[Sequence[Encoded]], z: Float[np.ndarray, "T z"], task_ids: np.ndarray) -> Batch:
    """Encoded examples [T][R] as one padded batch of numpy arrays; lengths are rounded up to buckets."""
    shape = (len(rows), len(rows[0]))
    longest = max(len(e.prompt) + len(e.answer) for row in rows for e in row) - 1
    answer = max(len(e.answer) for row in rows for e in row)
    length, supervised = -(-longest // BUCKET) * BUCKET, -(-answer // BUCKET) * BUCKET
    tokens, segments = np.zeros((*shape, length), np.int32), np.zeros((*shape, length), np.int32)
    at, targets = np.zeros((*shape, supervised), np.int32), np.zeros((*shape, supervised), np.int32)
    weights = np.zeros((*shape, supervised), np.float32)
    for t, row in enumerate(rows):
        for r, example in enumerate(row):
            prompt, wanted = example.prompt, example.answer
            count = len(prompt) + len(wanted) - 1  # the last answer token is predicted, never read
            tokens[t, r, :count] = (*prompt, *wanted[:-1])
            segments[t, r, :count] = 1
            at[t, r, : len(wanted)] = np.arange(len(prompt) - 1, count)
            targets[t, r, : len(wanted)] = wanted
            weights[t, r, : len(wanted)] = 1 / (len(wanted) * shape[0] * shape[1])
    arrays: Any = (z, np.asarray(task_ids, np.int32), tokens, segments, at, targets, weights)  # JAX takes NumPy's too
    return Batch(*arrays)
