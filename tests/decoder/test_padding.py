"""What sizes are padded to, and the padding, against numbers written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder.padding import (
    bucket,
    check_tokens,
    pad_leading,
    pad_rows,
    power_of_two,
    power_of_two_within,
    prompt_bucket,
)
from t2l_jax.errors import UserError


def test_powers_of_two():
    assert [power_of_two(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]
    assert [power_of_two_within(n) for n in (0, 1, 2, 3, 4, 7, 8, 1000)] == [1, 1, 2, 2, 4, 4, 8, 512]


def test_buckets():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 97)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 128]
    assert [prompt_bucket(n) for n in (0, 1, 16, 17)] == [16, 16, 16, 24]


def test_rows_are_padded_on_the_side_that_is_asked_for():
    tasks = [[[1, 2, 3], np.asarray([4])], [[]]]
    tokens, lengths = pad_rows(tasks, (3, 2, 4))
    assert tokens.tolist() == [[[0, 1, 2, 3], [0, 0, 0, 4]], [[0] * 4] * 2, [[0] * 4] * 2]
    assert lengths.tolist() == [[3, 1], [0, 0], [0, 0]]
    tokens, _ = pad_rows(tasks, (2, 2, 4), left=False)
    assert tokens[0].tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]


def test_leading_axes_are_filled_with_zeros():
    padded = pad_leading({"a": jnp.ones((2, 3)), "b": jnp.ones(2, int)}, 4)
    assert padded["a"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert padded["b"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("token", [-1, 10, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused(token):
    check_tokens(np.array([0, 9], np.int32), 10)
    check_tokens(np.zeros((2, 0), np.int32), 10)
    with pytest.raises(UserError, match="outside the vocabulary of 10"):
        check_tokens(np.array([[3, token]], np.int32), 10)
