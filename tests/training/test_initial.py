"""The weights that a run begins with, without the run (test_run.py has one)."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_published import NET, SPEC, save_published, tiny_config

from t2l_jax.errors import UserError
from t2l_jax.hypernet import TaskEncoderConfig
from t2l_jax.io.published import load_model, model_folder
from t2l_jax.training.initial import published_weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return save_published(tmp_path_factory.mktemp("start") / "model", tiny_config())


def begin(published, model):
    return published_weights(str(published), model, None)


def assert_taken(published, variables):
    jax.tree.map(np.testing.assert_array_equal, variables, load_model(published)[1])


def test_the_weights_are_taken_whatever_the_dropout(published):
    assert_taken(published, begin(published, tiny_config(hypernet=replace(NET, dropout=0.5))))


def test_a_packaged_model_is_known_by_its_name():
    folder = model_folder("smollm2-family")
    assert_taken(folder, begin("smollm2-family", load_model(folder)[0]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_config(base="hf:org/other"), "was trained for another base model, no/such/base"),
        (tiny_config(encoder="other"), "was trained with another text encoder, hash: what z means"),
        (
            tiny_config(lora=replace(SPEC, alpha=32.0)),
            r"with lora.alpha 32 they begin 2 times as strong",
        ),
        (tiny_config(lora=replace(SPEC, rslora=False)), r"with lora.alpha 16 they begin 0.707 times as strong"),
    ],
)
def test_what_else_the_weights_were_for_is_warned_of(published, model, message):
    with pytest.warns(UserWarning, match=message):
        assert_taken(published, begin(published, model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_config(lora=replace(SPEC, rank=3)), r"lora\.rank is 2, the recipe's is 3: make them equal"),
        (tiny_config(hypernet=replace(NET, head="M")), r"hypernet\.head is L, the recipe's is M"),
    ],
)
def test_another_shape_is_refused(published, model, message):
    with pytest.raises(UserError, match=message):
        begin(published, model)


def test_a_model_that_reads_something_else_is_taken_with_a_warning_or_refused_by_name(published):
    with pytest.warns(UserWarning, match="model reads descriptions, the recipe's trainee instances: what they mean"):
        assert_taken(published, begin(published, tiny_config(reads="instance")))
    wide = tiny_config(reads="both", hypernet=replace(NET, task=TaskEncoderConfig(dim=24)))
    message = "model reads descriptions, the recipe's trainee descriptions and instances: embeddings 12 and 24 wide"
    with pytest.raises(UserError, match=message):
        begin(published, wide)
