"""Tokenised texts as arrays of few shapes, so that programs are compiled rarely.

Axes: R rows, S sequence.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from t2l_jax.decoder.padding import SHORTEST_PROMPT, pad_rows, power_of_two

MAX_TOKENS = 4096
COMPILATION = 3e10  # FLOPs that a processor computes in the time of one more compilation


def token_batches(
    tokens: Sequence[Sequence[int]], token_flops: float = 0.0
) -> Iterator[tuple[list[int], Int[np.ndarray, "R S"], Int[np.ndarray, " R"]]]:
    """Rows of similar length as (their indices, tokens, lengths), longest first, in few shapes.

    R x S is at most MAX_TOKENS, or R is 1; rows that are left over are blank. S is a power of two, or less than that
    where padding would cost more than another shape does, by the FLOPs of one token.
    """
    order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
    while order:
        length = _padded(len(tokens[order[0]]), len(order), token_flops)
        most = max(1, MAX_TOKENS // length)
        chosen, order = order[:most], order[most:]
        shape = 1, min(most, power_of_two(len(chosen))), length
        padded, lengths = pad_rows([[tokens[index] for index in chosen]], shape, left=False)
        yield chosen, padded[0], lengths[0]


def _padded(length: int, rows: int, token_flops: float) -> int:
    """S for rows of which the longest has this length."""
    power = max(SHORTEST_PROMPT, power_of_two(length))
    step = max(8, power // 16)
    close = max(SHORTEST_PROMPT, -(-length // step) * step)
    saved = (power - close) * min(rows, max(1, MAX_TOKENS // power)) * token_flops
    return close if saved > COMPILATION else power
