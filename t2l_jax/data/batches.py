"""SFT batches of packed rows. The batch of step n is a function of (seed, n) alone.

A batch is [task, row, position]: tasks are drawn first, then enough of their examples to fill their rows. A row holds
examples of one task end to end. The prefix that all prompts of the task share (the head of the chat template and, with
a single wording, the whole instruction) is stored once at the beginning of the row, as segment 1, which the whole row
attends to. Each example is a segment of its own after it: it attends to itself, and its positions continue from segment
1. The model thus computes the same as for each example alone, but reads the shared prefix once. All tasks of a batch
have equal weight in the loss, however many of their examples fit, as with one example per task in the paper.

Without packing, a row holds one example, as in the paper's batch of one example of each of 8 tasks. If adapters are
conditioned on the instance too, each example has an adapter of its own: it becomes a "task" of one row.

Examples longer than a row are left out, since truncation would change the task (`Sampler.too_long` counts them), unless
the configuration says to cut them as the original does: `TokenTable.cut`. The
last examples of a row are chosen among the next LOOKAHEAD to fill it, which favours short ones: on real tasks with rows
of 1,024 tokens the mean length drops by up to 2% (experiments/benchmarks/padding.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from t2l_jax.data.batch import Batch
from t2l_jax.data.prompts import Encoded, PromptMode, Tokens
from t2l_jax.decoder import SHARED
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.schema import Width, check_fields

MOST_TOKENS = 2**26  # of a batch, which is built in host memory
LOOKAHEAD = 8  # examples that may fail to fit before a task's rows count as full


@dataclass(frozen=True)
class BatchConfig:
    """Shape of a training batch."""

    tasks: Width = 8
    """Number of tasks per step."""
    rows: Width = 1
    """Number of rows per task."""
    length: Width = 1024
    """Tokens per row."""
    packing: bool = True
    """Pack several examples into a row. Without, a row holds one example (the paper's batch: 8 tasks, one row each)."""
    shared_prefix: bool = True
    """Store what all prompts of a task begin with once in a packed row. Turn it off for attention with a kernel
    (--compute.attention), which knows no such rows."""
    too_long: Literal["drop", "cut"] = "drop"
    """Examples longer than a row. drop: left out; cut: their prompts lose their first tokens (as in the original), and
    only those whose answers are too long are left out."""

    def __post_init__(self) -> None:
        check_fields(self, "batch")
        if (size := self.tasks * self.rows * self.length) > MOST_TOKENS:
            raise UserError(f"batch: tasks × rows × length are {size:,} tokens: a batch holds at most {MOST_TOKENS:,}")


@dataclass(frozen=True)
class TokenTable:
    """Concatenated examples: example i is tokens[starts[i]:starts[i + 1]], its prompt the first prompts[i] of them."""

    tokens: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " n+1"]
    prompts: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, examples: Sequence[Encoded]) -> "TokenTable":
        """Concatenate examples into a table."""
        ends = np.cumsum([0] + [len(e.prompt) + len(e.answer) for e in examples], dtype=np.int64)
        parts = [np.asarray(part, np.int32) for example in examples for part in example]
        tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return cls(tokens, ends, np.asarray([len(e.prompt) for e in examples], np.int64))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Encoded:
        tokens = self.tokens[self.starts[index] : self.starts[index + 1]]
        return Encoded(tokens[: self.prompts[index]], tokens[self.prompts[index] :])

    def cut(self, length: int) -> "TokenTable":
        """The table with prompts that lose their first tokens where an example has more than `length`.

        At least one token of a prompt stays, which predicts the answer: an answer that is too long stays too long.
        """
        surplus = np.clip(self.lengths - length, 0, self.prompts - 1)
        if not surplus.any():
            return self
        kept = np.ones(len(self.tokens), bool)
        for start, count in zip(self.starts[:-1], surplus, strict=True):
            kept[start : start + count] = False
        ends = np.concatenate([[0], np.cumsum(np.diff(self.starts) - surplus)])
        return TokenTable(self.tokens[kept], ends, self.prompts - surplus)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of tokens per example that the model reads: the last one is only predicted."""
        return np.diff(self.starts) - 1

    @cached_property
    def shared(self) -> int:
        """Length of the longest prefix of all prompts, without their last token, which predicts the answer."""
        head = self[0].prompt[:-1] if len(self) else ()
        for start, size in zip(self.starts[:-1], self.prompts - 1, strict=True):
            head = head[:size]
            differs = np.flatnonzero(np.not_equal(head, self.tokens[start : start + len(head)]))
            head = head[: differs[0]] if differs.size else head
        return len(head)


@dataclass(frozen=True)
class TrainingTask:
    """A task's training data: n conditions (one per description), and its examples in each prompt mode.

    The tables of both modes hold the same examples in the same order. `weight` is the task's relative sampling
    frequency. `instances` are the embeddings of the examples' inputs, if adapters are conditioned on them.
    """

    name: str
    conditions: Condition  # [n]; each step draws one
    examples: Mapping[PromptMode, TokenTable]
    weight: float = 1.0
    instances: Float32[np.ndarray, "m z"] | None = None

    @property
    def num_conditions(self) -> int:
        return len(jax.tree.leaves(self.conditions)[0])

    def fits(self, mode: PromptMode, length: int) -> bool:
        """True if at least one example in this mode fits in a row of `length` tokens."""
        return int(self.examples[mode].lengths.min(initial=2**31)) <= length


def shortest(examples: Mapping[PromptMode, TokenTable]) -> int:
    """Number of tokens that the model reads of the shortest example; 2**31 if there are no examples."""
    return min((int(table.lengths.min(initial=2**31)) for table in examples.values()), default=2**31)


@dataclass(frozen=True)
class Sampler:
    """Draws the batches of a run. A drawn task's prompts hold an instruction with probability `instruction_share`."""

    tasks: Sequence[TrainingTask]
    shape: BatchConfig
    seed: int
    instruction_share: float = 0.0
    _chances: Float[np.ndarray, " n"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shape.tasks > len(self.tasks):
            raise UserError(
                f"a batch of {self.shape.tasks} tasks needs at least {self.shape.tasks} training tasks, "
                f"there are {len(self.tasks)}: lower --batch.tasks or add tasks"
            )
        weights = np.asarray([task.weight for task in self.tasks])
        chances = self.shape.tasks * weights / weights.sum()
        if chances.max() > 1 + 1e-9:
            raise UserError(
                f"task {self.tasks[int(chances.argmax())].name} would come {chances.max():.1f} times in a batch of "
                f"{self.shape.tasks} tasks: lower the weight of its source, lower --batch.tasks or add tasks"
            )
        for task in self.tasks:
            if shortest(task.examples) > self.shape.length:
                raise UserError(
                    f"task {task.name}: none of its examples fits in a row of {self.shape.length} tokens: "
                    "training needs at least one; raise --batch.length or leave the task out"
                )
        object.__setattr__(self, "_chances", chances)

    @property
    def too_long(self) -> tuple[int, int]:
        """(Number of examples longer than a row, number of all examples); an example counts once per mode."""
        lengths = np.concatenate([table.lengths for task in self.tasks for table in task.examples.values()])
        return int((lengths > self.shape.length).sum()), len(lengths)

    def draw(self, step: int, slots: Sequence[int] | None = None) -> Batch:
        """The batch of a step, a function of seed and step alone; or the part of it of some of its tasks.

        `slots` are their places, from 0 to the number of tasks in a batch. Only they are packed: each has a generator
        of its own.
        """
        generators = [slot_generator(self.seed, step, slot) for slot in range(self.shape.tasks)]
        chosen = draw_tasks(np.random.default_rng([self.seed, step]), self._chances, self.shape.tasks)
        tasks = [self.tasks[index] for index in chosen]
        drawn = [self._draw_task(task, rng) for task, rng in zip(tasks, generators, strict=True)]
        counts = [parts_filled(table, tasks[slot].instances, self.shape) for slot, (table, _) in enumerate(drawn)]
        filled, packed, conditions = sum(counts), [], []
        for slot in range(self.shape.tasks) if slots is None else slots:
            table, condition = drawn[slot]
            order = generators[slot].permutation(len(table))
            for rows, own in fill(table, order, condition, tasks[slot].instances, self.shape):
                packed.append(rows)
                conditions.append(own)
        return collate(packed, stack_conditions(conditions), self.shape.length, filled)

    def _draw_task(self, task: TrainingTask, rng: np.random.Generator) -> tuple[TokenTable, Condition]:
        """A task's examples in one of its modes, and one of its conditions."""
        condition = take(task.conditions, rng.integers(task.num_conditions))
        described = rng.random() < self.instruction_share
        mode: PromptMode = next(mode for mode in task.examples if (mode != "instance") == described)
        if not task.fits(mode, self.shape.length):  # then it does in another mode
            mode = next(other for other in task.examples if task.fits(other, self.shape.length))
        return task.examples[mode], condition


def slot_generator(seed: int, step: int, slot: int) -> np.random.Generator:
    """The random numbers of a task's place in the batch of a step, independent of all others."""
    return np.random.default_rng(np.random.SeedSequence([seed, step], spawn_key=(slot,)))


def draw_tasks(rng: np.random.Generator, chances: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " T"]:
    """Draw `count` distinct tasks by systematic sampling; `chances` are inclusion probabilities that sum to `count`."""
    order = rng.permutation(len(chances))
    places = np.searchsorted(np.cumsum(chances[order]), rng.random() + np.arange(count), side="right")
    return order[np.minimum(places, len(order) - 1)]


@dataclass(frozen=True)
class Packed:
    """The rows of a task: `shared` is the prefix of all its examples; rows hold examples without it."""

    shared: Tokens
    rows: Sequence[Sequence[Encoded]]


def pack(table: TokenTable, order: Int[np.ndarray, " n"], rows: int, length: int, prefix: bool = True) -> Packed:
    """Put each example, in this order, in the fullest row with room for it, until LOOKAHEAD examples fit in none.

    Without `prefix`, what all prompts begin with is a part of each example.
    """
    shared = table.shared if prefix else 0
    filled: list[list[Encoded]] = [[] for _ in range(rows)]
    free, misses = [length - shared] * rows, 0
    for index in order:
        need = int(table.lengths[index]) - shared
        fitting = [row for row in range(rows) if free[row] >= need]
        if fitting:
            row = min(fitting, key=free.__getitem__)
            prompt, answer = table[int(index)]
            filled[row].append(Encoded(prompt[shared:], answer))
            free[row] -= need
        elif need <= length - shared:
            misses += 1
        if misses == LOOKAHEAD or not any(free):
            break
    return Packed(table.tokens[:shared], filled)


def fill(
    table: TokenTable,
    order: Int[np.ndarray, " n"],
    condition: Condition,
    instances: Float32[np.ndarray, "n z"] | None,
    shape: BatchConfig,
) -> list[tuple[Packed, Condition]]:
    """A task's part of a batch, from its examples in this order: rows, and the condition of their adapter.

    With `instances`, each example is a part of its own, and every task has `shape.rows` parts; some are empty if it has
    fewer examples that fit.
    """
    if shape.packing and instances is None:
        return [(pack(table, order, shape.rows, shape.length, shape.shared_prefix), condition)]
    chosen = fitting(table, order, shape.rows, shape.length)
    rows = [[table[index]] for index in chosen] + [[]] * (shape.rows - len(chosen))
    if instances is None:
        return [(Packed((), rows), condition)]
    owners = chosen + chosen[:1] * (shape.rows - len(chosen))
    return [(Packed((), [row]), replace(condition, instance=instances[i])) for row, i in zip(rows, owners, strict=True)]


def parts_filled(table: TokenTable, instances: Float32[np.ndarray, "n z"] | None, shape: BatchConfig) -> int:
    """The number of parts with examples that `fill` makes of a table in which at least one fits."""
    if instances is None:
        return 1
    return min(shape.rows, int(np.count_nonzero(table.lengths <= shape.length)))


def fitting(table: TokenTable, order: Int[np.ndarray, " n"], count: int, length: int) -> list[int]:
    """The first `count` examples in this order that fit in a row of `length` tokens each."""
    return [int(index) for index in order[table.lengths[order] <= length][:count]]


def take(conditions: Condition, index: int | np.integer) -> Condition:
    """One condition of a batch of conditions."""
    return jax.tree.map(lambda leaf: leaf[index], conditions)


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Stack conditions of single tasks into those of a batch [T], in host memory."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *conditions)


def collate(packed: Sequence[Packed], conditions: Condition, length: int, filled: int | None = None) -> Batch:
    """Combine tasks of R rows each into one batch of NumPy arrays with rows of `length` tokens.

    `filled` is the number of tasks with examples, if these are only a part of a batch's. Raises ValueError if a row's
    examples exceed `length`.
    """
    shape = (len(packed), len(packed[0].rows), length)
    counts = [sum(map(len, task.rows)) for task in packed]
    if filled is None:
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
