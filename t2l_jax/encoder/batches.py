"""Tokenised texts as arrays of few shapes, so that programs are compiled rarely.

Axes: R rows, S sequence.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from t2l_jax.decoder.padding import SHORTEST_PROMPT, pad_rows, power_of_two

BATCH_TOKENS = 2048  # more take no less time each, and the activations of fewer stay in a processor's cache
STEPS = (4, 8, 16)  # of S, where it is no power of two
COMPILATION = 1e10  # FLOPs that one more shape may cost: more take as long as compiling it, which is kept


class Batch(NamedTuple):
    """So many texts in an array of this shape."""

    texts: int
    rows: int
    length: int


def token_batches(
    tokens: Sequence[Sequence[int]], token_flops: float = 0.0
) -> Iterator[tuple[list[int], Int[np.ndarray, "R S"], Int[np.ndarray, " R"]]]:
    """Rows of similar length as (their indices, tokens, lengths), longest first, in few shapes.

    R x S is at most BATCH_TOKENS, or R is 1; rows that are left over are blank. S is a power of two, which other texts
    need as well; or a multiple of a smaller step, if that saves more padding than its shapes take to compile, by the
    FLOPs of one token.
    """
    order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
    lengths = [len(tokens[index]) for index in order]
    plans = [_plan(lengths, step) for step in (None, *STEPS)]
    for batch in min(plans, key=lambda plan: _cost(plan, token_flops)):
        chosen, order = order[: batch.texts], order[batch.texts :]
        shape = 1, batch.rows, batch.length
        padded, sizes = pad_rows([[tokens[index] for index in chosen]], shape, left=False)
        yield chosen, padded[0], sizes[0]


def _plan(lengths: Sequence[int], step: int | None) -> list[Batch]:
    """Batches of texts of these lengths, longest first, whose S is a multiple of `step`; None: a power of two."""
    plan, done = [], 0
    while done < len(lengths):
        power = power_of_two(lengths[done])
        length = max(SHORTEST_PROMPT, power if step is None else min(power, -(-lengths[done] // step) * step))
        most = max(1, BATCH_TOKENS // length)
        texts = min(most, len(lengths) - done)
        plan.append(Batch(texts, min(most, power_of_two(texts)), length))
        done += texts
    return plan


def _cost(plan: Sequence[Batch], token_flops: float) -> float:
    """FLOPs of a plan, those of compiling its own shapes included."""
    own = {batch[1:] for batch in plan if batch.length != power_of_two(batch.length)}
    return token_flops * sum(batch.rows * batch.length for batch in plan) + COMPILATION * len(own)
