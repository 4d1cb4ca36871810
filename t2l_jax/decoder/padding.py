"""What arrays are padded to, so that programs are compiled for few shapes, and the padding.

Axes: T tasks, R rows of one task, S tokens of a row.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from t2l_jax.errors import UserError

SHORTEST_PROMPT = 16  # tokens

Tree = TypeVar("Tree")


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def power_of_two_within(limit: int) -> int:
    """The largest power of two that is at most `limit`, and 1 for less."""
    return 1 << (max(1, limit).bit_length() - 1)


def bucket(size: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `size`: powers of two and halves between."""
    power = power_of_two(size)
    return 3 * power // 4 if power >= 4 and size <= 3 * power // 4 else power


def prompt_bucket(size: int) -> int:
    """The bucket of a prompt of `size` tokens."""
    return max(SHORTEST_PROMPT, bucket(size))


def pad_rows(
    tasks: Sequence[Sequence[Sequence[int] | np.ndarray]], shape: tuple[int, int, int], *, left: bool = True
) -> tuple[Int[np.ndarray, "T R S"], Int[np.ndarray, "T R"]]:
    """Rows of tokens in an array [T, R, S], zeros before them (`left`) or after them, and their lengths.

    A row of length 0 only fills the array.
    """
    tokens, lengths = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32)
    for t, task in enumerate(tasks):
        for r, row in enumerate(task):
            start = shape[2] - len(row) if left else 0
            tokens[t, r, start : start + len(row)] = row
            lengths[t, r] = len(row)
    return tokens, lengths


def check_tokens(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise UserError for a token outside the vocabulary, whose embedding JAX would take from the nearest row."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise UserError(
            f"a text holds token {tokens.max()}, outside the vocabulary of {vocab_size}: the tokenizer is another "
            "model's; download the model again"
        )


def pad_leading(tree: Tree, size: int) -> Tree:
    """Every array of the tree with zeros at the end of its first axis, up to `size`; host arrays stay on the host."""

    def pad(leaf: Any) -> Any:
        library = jnp if isinstance(leaf, jax.Array) else np
        return library.pad(leaf, ((0, size - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)))

    return jax.tree.map(pad, tree)
