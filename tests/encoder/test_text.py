"""Instances are embedded as descriptions are, each text once."""

import numpy as np
import pytest
from tiny_published import HashEncoder

from t2l_jax.encoder import embed_instances
from t2l_jax.encoder.text import MAX_CHARACTERS
from t2l_jax.errors import UserError


def test_equal_instances_are_embedded_once_and_long_ones_lose_their_end():
    encoder = HashEncoder()
    long = "x1" * MAX_CHARACTERS
    found = embed_instances(encoder, ["red", "blue", " red\n", long, "red"])
    assert encoder.texts == ["red.", "blue.", long[:MAX_CHARACTERS]]
    expected = HashEncoder().embed(["red", "blue", "red", long[:MAX_CHARACTERS], "red"])
    np.testing.assert_array_equal(found, expected)
    assert embed_instances(encoder, []).shape == (0, encoder.dim)


def test_an_instance_without_text_is_refused_by_its_number():
    with pytest.raises(UserError, match="instance 2 is empty"):
        embed_instances(HashEncoder(), ["red", " \n"])
    with pytest.raises(TypeError, match="put the one text into a list"):
        embed_instances(HashEncoder(), "red")
