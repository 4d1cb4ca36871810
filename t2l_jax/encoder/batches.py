"""Tokenised texts as arrays of few shapes, so that programs are compiled rarely.

Axes: R rows, S sequence.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from t2l_jax.decoder.padding import SHORTEST_PROMPT, pad_rows, power_of_two

MAX_TOKENS = 4096


def token_batches(
    tokens: Sequence[Sequence[int]],
) -> Iterator[tuple[list[int], Int[np.ndarray, "R S"], Int[np.ndarray, " R"]]]:
    """Rows of similar length as (their indices, tokens, lengths), in few shapes so that compilation happens rarely.

    R and S are powers of two and R x S is at most MAX_TOKENS; rows that are left over are blank.
    """
    buckets: dict[int, list[int]] = {}
    for index, ids in enumerate(tokens):
        buckets.setdefault(max(SHORTEST_PROMPT, power_of_two(len(ids))), []).append(index)
    for length, members in sorted(buckets.items()):
        most = MAX_TOKENS // length
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            shape = 1, power_of_two(len(chosen)), length
            padded, lengths = pad_rows([[tokens[index] for index in chosen]], shape, left=False)
            yield chosen, padded[0], lengths[0]
