"""SFT batches of packed rows. The batch of step n is a function of (seed, n) alone.

A batch is [task, row, position]: tasks are drawn first, then as many of their examples as fill their rows. A row holds
examples of one task end to end. What all prompts of the task begin with (the head of the chat template; of a task with
one wording its whole instruction) stands once at the beginning of the row, as segment 1, which all of the row attends
to; after it every example is a segment of its own, which attends to itself, and whose positions go on from segment 1.
So the model reads what it would read if each example stood alone, and reads what they share once. However many of its
examples fit, a task weighs as much in the loss as any other, as where every task brings one example (the paper).

Examples longer than a row are left out, since a cut prompt is another task (`Sampler.too_long` counts them). The last
examples of a row are chosen among the next LOOKAHEAD so that they fill it: the examples of a batch are therefore a
little shorter than all examples, by up to 2% on real tasks with rows of 1,024 tokens (experiments/padding.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from t2l_jax.data.batch import Batch
from t2l_jax.data.prompts import Encoded, PromptMode, Tokens
from t2l_jax.decoder import SHARED
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition

LOOKAHEAD = 8  # examples that may fail to fit before a task's rows count as full


@dataclass(frozen=True)
class BatchConfig:
    """The shape of a step's batch."""

    tasks: int = 8
    """Tasks of a step."""
    rows: int = 1
    """Rows of each task."""
    length: int = 1024
    """Tokens of a row, which holds several examples. Longer examples are left out."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"batch.{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class TokenTable:
    """Encoded examples end to end: example i is tokens[starts[i]:starts[i + 1]], first prompts[i] tokens of prompt."""

    tokens: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " n+1"]
    prompts: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, examples: Sequence[Encoded]) -> "TokenTable":
        """The table of these examples."""
        ends = np.cumsum([0] + [len(e.prompt) + len(e.answer) for e in examples], dtype=np.int64)
        parts = [np.asarray(part, np.int32) for example in examples for part in example]
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return cls(tokens, ends, np.asarray([len(e.prompt) for e in examples], np.int64))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Encoded:
        tokens = self.tokens[self.starts[index] : self.starts[index + 1]]
        return Encoded(tokens[: self.prompts[index]], tokens[self.prompts[index] :])

    @cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """How many tokens the model reads of each example: the last is predicted, never read."""
        return np.diff(self.starts) - 1

    @cached_property
    def shared(self) -> int:
        """How many tokens all prompts begin with, their last token left out: from there the answer is predicted."""
        head = self[0].prompt[:-1] if len(self) else ()
        for start, size in zip(self.starts[:-1], self.prompts - 1, strict=True):
            head = head[:size]
            differs = np.flatnonzero(np.not_equal(head, self.tokens[start : start + len(head)]))
            head = head[: differs[0]] if differs.size else head
        return len(head)


@dataclass(frozen=True)
class TrainingTask:
    """What training reads of a task: n conditions (one for each description), and its examples in each mode trained.

    The tables of both modes hold the same examples in the same order. `weight`: how often the task is drawn, next to
    the others'.
    """

    name: str
    conditions: Condition  # [n], of which each step draws one
    examples: Mapping[PromptMode, TokenTable]
    weight: float = 1.0

    @property
    def num_conditions(self) -> int:
        return len(jax.tree.leaves(self.conditions)[0])

    def fits(self, mode: PromptMode, length: int) -> bool:
        """True if any of its examples in this mode fits in a row of `length` tokens."""
        return int(self.examples[mode].lengths.min(initial=2**31)) <= length

    @property
    def shortest(self) -> int:
        return shortest(self.examples)


def shortest(examples: Mapping[PromptMode, TokenTable]) -> int:
    """Tokens that the model reads of the shortest example; without examples more than any row holds."""
    return min((int(table.lengths.min(initial=2**31)) for table in examples.values()), default=2**31)


@dataclass(frozen=True)
class Sampler:
    """Draws the batches of a run. Of the tasks drawn, `instruction_share` show examples with an instruction."""

    tasks: Sequence[TrainingTask]
    shape: BatchConfig
    seed: int
    instruction_share: float = 0.0
    _chances: Float[np.ndarray, " n"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shape.tasks > len(self.tasks):
            raise UserError(
                f"a batch of {self.shape.tasks} tasks needs as many training tasks, there are {len(self.tasks)}: "
                "lower --batch.tasks or add tasks"
            )
        weights = np.asarray([task.weight for task in self.tasks])
        chances = self.shape.tasks * weights / weights.sum()
        if chances.max() > 1 + 1e-9:
            raise UserError(
                f"task {self.tasks[int(chances.argmax())].name} would come {chances.max():.1f} times in a batch of "
                f"{self.shape.tasks} tasks: lower the weight of its source, lower --batch.tasks or add tasks"
            )
        for task in self.tasks:
            if task.shortest > self.shape.length:
                raise UserError(
                    f"task {task.name}: none of its examples fits in a row of {self.shape.length} tokens: "
                    "training needs at least one; raise --batch.length or leave the task out"
                )
        object.__setattr__(self, "_chances", chances)

    @property
    def too_long(self) -> tuple[int, int]:
        """(Examples that fit in no row and are never drawn, examples); an example counts once in each mode."""
        lengths = np.concatenate([table.lengths for task in self.tasks for table in task.examples.values()])
        return int((lengths > self.shape.length).sum()), len(lengths)

    def draw(self, step: int) -> Batch:
        """The batch of a step: the same for the same seed and step, whatever came before."""
        rng = np.random.default_rng([self.seed, step])
        chosen = draw_tasks(rng, self._chances, self.shape.tasks)
        packed, conditions = [], []
        for index in chosen:
            task = self.tasks[index]
            conditions.append(take(task.conditions, rng.integers(task.num_conditions)))
            mode: PromptMode = "instruction" if rng.random() < self.instruction_share else "instance"
            if not task.fits(mode, self.shape.length):  # then another one does
                mode = next(other for other in task.examples if task.fits(other, self.shape.length))
            table = task.examples[mode]
            packed.append(pack(table, rng.permutation(len(table)), self.shape.rows, self.shape.length))
        return collate(packed, stack_conditions(conditions), self.shape.length)


def draw_tasks(rng: np.random.Generator, chances: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " T"]:
    """`count` different tasks, each with its own probability; these sum to `count` (systematic sampling)."""
    order = rng.permutation(len(chances))
    places = np.searchsorted(np.cumsum(chances[order]), rng.random() + np.arange(count), side="right")
    return order[np.minimum(places, len(order) - 1)]


@dataclass(frozen=True)
class Packed:
    """The rows of a task: `shared` is what all its examples begin with; each row holds what follows in some of them."""

    shared: Tokens
    rows: Sequence[Sequence[Encoded]]


def pack(table: TokenTable, order: Int[np.ndarray, " n"], rows: int, length: int) -> Packed:
    """Examples in this order, each put in the fullest row that it fits in, until LOOKAHEAD of them fitted in none."""
    filled: list[list[Encoded]] = [[] for _ in range(rows)]
    free, misses = [length - table.shared] * rows, 0
    for index in order:
        need = int(table.lengths[index]) - table.shared
        fitting = [row for row in range(rows) if free[row] >= need]
        if fitting:
            row = min(fitting, key=free.__getitem__)
            prompt, answer = table[int(index)]
            filled[row].append(Encoded(prompt[table.shared :], answer))
            free[row] -= need
        elif need <= length - table.shared:
            misses += 1
        if misses == LOOKAHEAD or not any(free):
            break
    return Packed(table.tokens[: table.shared], filled)


def take(conditions: Condition, index: int | np.integer) -> Condition:
    """One of a batch of conditions."""
    return jax.tree.map(lambda leaf: leaf[index], conditions)


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions of single tasks as those of a batch [T], in host memory."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *conditions)


def collate(packed: Sequence[Packed], conditions: Condition, length: int) -> Batch:
    """The rows of tasks, as many of each, as one batch of numpy arrays with rows of `length` tokens.

    Raises ValueError where the examples of a row are longer than `length`.
    """
    shape = (len(packed), len(packed[0].rows), length)
    counts = [sum(map(len, task.rows)) for task in packed]
    filled = sum(count > 0 for count in counts)
    tokens, segments, positions, targets = (np.zeros(shape, np.int32) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for t, task in enumerate(packed):
        shared = len(task.shared)
        for r, row in enumerate(task.rows):
            if not row:
                continue
            tokens[t, r, :shared], segments[t, r, :shared] = task.shared, SHARED
            positions[t, r, :shared] = np.arange(shared)
            start = shared
            for segment, (prompt, wanted) in enumerate(row, SHARED + 1):
                end = start + len(prompt) + len(wanted) - 1  # the last answer token is predicted, never read
                tokens[t, r, start:end] = (*prompt, *wanted[:-1])
                segments[t, r, start:end] = segment
                positions[t, r, start:end] = shared + np.arange(end - start)
                predicting = slice(start + len(prompt) - 1, end)
                targets[t, r, predicting] = wanted
                weights[t, r, predicting] = 1 / (len(wanted) * counts[t] * filled)
                start = end
    arrays: Any = (tokens, segments, positions, targets, weights)  # JAX takes NumPy's too
    return Batch(conditions, *arrays)
