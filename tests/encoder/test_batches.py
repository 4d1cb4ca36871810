"""Batches hold every row once, in few shapes; padding is weighed against the compilation of another shape."""

import numpy as np
import pytest

from t2l_jax.encoder.batches import BATCH_TOKENS, COMPILATION, token_batches


def batches(lengths: list[int], token_flops: float) -> list[tuple[int, int]]:
    """The shapes, once it is known that they hold every row once."""
    tokens = [[index + 1] * length for index, length in enumerate(lengths)]
    seen, shapes = [], []
    for chosen, padded, sizes in token_batches(tokens, token_flops):
        shapes.append(padded.shape)
        for row, index in enumerate(chosen):
            assert sizes[row] == lengths[index]
            np.testing.assert_array_equal(padded[row], tokens[index] + [0] * (padded.shape[1] - lengths[index]))
        assert not sizes[len(chosen) :].any()
        seen += chosen
    assert sorted(seen) == list(range(len(lengths)))
    return shapes


@pytest.mark.parametrize("token_flops", [0.0, 2e7, 1e12])
def test_every_row_is_there_once_in_few_shapes(token_flops: float) -> None:
    shapes = batches([1 + 37 * index % 300 for index in range(500)], token_flops)
    assert all(rows == 1 or rows * length <= BATCH_TOKENS for rows, length in shapes)
    assert len(set(shapes)) < (8 if token_flops == 0 else 60)


def test_without_a_cost_of_padding_rows_have_powers_of_two() -> None:
    shapes = batches([10, 17, 33, 33, 40, 5000], 0.0)
    assert shapes == [(1, 8192), (8, 64)]  # of five rows


def test_padding_is_left_out_where_it_costs_more_than_a_shape() -> None:
    lengths = [36] * 224  # in seven batches of 64 tokens 14,336, of 36 tokens 8,064
    assert set(batches(lengths, COMPILATION / 6000)) == {(56, 36)}
    assert set(batches(lengths, COMPILATION / 6500)) == {(32, 64)}


def test_no_rows_make_no_batches() -> None:
    assert batches([], 1e7) == []
