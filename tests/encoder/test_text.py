"""Instances are embedded as descriptions are, each text once."""

import numpy as np
import pytest
from tiny_published import HashEncoder

from t2l_jax.encoder import embed_instances, text
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


def test_instances_are_embedded_in_chunks_each_of_which_is_cached(monkeypatch, tmp_path):
    monkeypatch.setattr(text, "CHUNK", 2)
    encoder, sizes = HashEncoder(), []
    embed = encoder.embed
    encoder.embed = lambda texts, cache: sizes.append((len(texts), cache)) or embed(texts)
    found = embed_instances(encoder, ["a", "b", "a", "c", "d", "e"], tmp_path)
    assert sizes == [(2, tmp_path), (2, tmp_path), (1, tmp_path)]
    np.testing.assert_array_equal(found, HashEncoder().embed(["a", "b", "a", "c", "d", "e"]))


def test_an_instance_without_text_is_refused_by_its_number():
    with pytest.raises(UserError, match="instance 2 is empty"):
        embed_instances(HashEncoder(), ["red", " \n"])
    with pytest.raises(TypeError, match="put the one text into a list"):
        embed_instances(HashEncoder(), "red")
