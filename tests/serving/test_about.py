"""Norms of adapters, and which trained descriptions are near: against NumPy."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_published import HashEncoder, save_base, save_published, tiny_config

from t2l_jax import load
from t2l_jax import model as model_module
from t2l_jax.errors import UserError
from t2l_jax.io.descriptions import Descriptions
from t2l_jax.lora import dense_delta
from t2l_jax.serving.about import Nearest, Trained, norms_of
from t2l_jax.serving.adapters import Entry
from t2l_jax.serving.engine import Busy

TRAINED = tuple(f"Say word {number}." for number in range(12))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_module, "load_encoder", lambda source, **_: HashEncoder())
    return load(save_published(tmp_path / "model", tiny_config(save_base(tmp_path / "base"))))


def entry(model, text):
    return Entry(f"t2l:{text}", model.generate([text])[0], "description", text)


def test_norms_are_those_of_the_dense_change(model):
    one = entry(model, "Say two.")
    found = norms_of(one)["norms"]
    assert list(found) == ["q_proj", "v_proj"]
    for name, delta in dense_delta(one.adapter).items():
        np.testing.assert_allclose(found[name], np.linalg.norm(delta, axis=(1, 2)), rtol=1e-4, atol=1e-6)


def test_the_nearest_come_first_and_strangers_are_far(model):
    known = replace(model, descriptions=Descriptions(trained=TRAINED))
    nearest = Nearest(known)
    z = np.array(HashEncoder().embed(TRAINED))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    found = nearest.to(entry(known, TRAINED[3]))
    expected = np.argsort(-(z @ z[3]))[:5]
    assert [each["description"] for each in found["nearest"]] == [TRAINED[index] for index in expected]
    assert found["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert found["near"] is True
    limit = np.quantile((z @ z.T - 2 * np.eye(len(z))).max(1), 0.05)
    seen = set()
    for text in (f"Say {number}." for number in range(40)):
        own = HashEncoder().embed([text])[0]
        best = (z @ (own / np.linalg.norm(own))).max()
        near = nearest.to(entry(known, text))["near"]
        assert near == (best >= limit)
        seen.add(near)
    assert seen == {True, False}


def test_they_are_embedded_once_also_where_nothing_can_be_kept(model, monkeypatch, tmp_path):
    encoder, given = HashEncoder(), []

    def embed(texts, cache=None):
        if cache is not None:
            raise UserError("the disk is full")
        given.extend(texts)
        return HashEncoder().embed(texts)

    monkeypatch.setattr(encoder, "embed", embed)
    known = replace(model, descriptions=Descriptions(trained=TRAINED))
    known.__dict__["encoder"] = encoder
    nearest = Nearest(known)
    for text in (TRAINED[0], TRAINED[1]):
        assert nearest.to(Entry("x", model.generate(["Say."])[0], "description", text))["near"]
    assert given == [*TRAINED, TRAINED[0], TRAINED[1]]


def test_a_closing_server_embeds_no_more(model):
    nearest = Nearest(replace(model, descriptions=Descriptions(trained=TRAINED)))
    nearest.close()
    with pytest.raises(Busy):
        nearest.to(entry(model, "Say two."))


def test_norms_of_huge_adapters_are_numbers(model):
    one = entry(model, "Say two.")
    for size, expected in ((1e15, None), (1e25, np.finfo(np.float32).max)):
        huge = jax.tree.map(lambda leaf, size=size: jnp.full_like(leaf, size), one.adapter)
        found = np.array(norms_of(replace(one, adapter=huge))["norms"]["q_proj"])
        scale = huge.spec.scale * 2 * 16 * size * size  # ‖BA‖ of factors of ones: rank x width
        np.testing.assert_allclose(found, scale if expected is None else expected, rtol=1e-5)
    json.dumps(norms_of(replace(one, adapter=jax.tree.map(jnp.zeros_like, one.adapter))), allow_nan=False)


def test_an_opposite_is_far():
    directions = np.eye(4, 3, dtype=np.float32)
    directions[3] = [0.9, np.sqrt(1 - 0.81), 0]
    trained = Trained(("a", "b", "c", "d"), directions)
    assert trained.nearest(np.array([2, 0, 0], np.float32))[:2] == [("a", 1.0), ("d", pytest.approx(0.9))]
    assert 0 < trained.near < 0.9
    assert trained.nearest(-np.ones(3, np.float32))[0][1] < trained.near


def test_where_nothing_is_known_nothing_is_said(model):
    nothing = {"nearest": None, "near": None}
    assert Nearest(model).to(entry(model, "Say two.")) == nothing
    known = replace(model, descriptions=Descriptions(trained=TRAINED))
    assert Nearest(known).to(replace(entry(known, "Say two."), description=None)) == nothing


def test_one_trained_task_is_no_measure_of_distance():
    assert Trained(("a",), np.ones((1, 1), np.float32)).near == 0
