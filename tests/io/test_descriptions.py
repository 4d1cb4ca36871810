"""descriptions.json.gz of a published folder: what is written comes back, and what is damaged is named."""

import gzip
import json

import numpy as np
import pytest
from tiny_published import save_published, tiny_config

from t2l_jax import load
from t2l_jax.data.tasks import evenly
from t2l_jax.errors import UserError
from t2l_jax.io.descriptions import FILE, MOST_BYTES, NONE, Descriptions, ExampleTask, read, write
from t2l_jax.io.published import PRETRAINED, load_model, publish, save_model

SOME = Descriptions(
    trained=("Sag „zwei“.", "Say two.\nIn words."), examples=(ExampleTask(description="Say one.", input="1"),)
)


def test_a_folder_without_descriptions_has_none(tmp_path):
    write(tmp_path, NONE)
    assert not list(tmp_path.iterdir())
    assert read(tmp_path) == NONE


def test_they_are_published_with_a_model_and_go_with_it(tmp_path):
    config, variables = load_model(save_published(tmp_path / "plain", tiny_config()))
    save_model(tmp_path / "model", config, variables, "# Card\n", np.float32, descriptions=SOME)
    publish(tmp_path / "model", tmp_path / "again", alpha=3.0)
    assert load(tmp_path / "again").descriptions == SOME
    assert load(tmp_path / "plain").descriptions == NONE


def test_of_too_many_bytes_as_many_as_fit_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("t2l_jax.io.descriptions.MOST_BYTES", 10_000)
    trained = tuple(f"{index:04d} {'ä' * (index % 60)}" for index in range(400))
    write(tmp_path, Descriptions(trained=trained, examples=SOME.examples))
    found = read(tmp_path)
    assert found.examples == SOME.examples
    assert found.trained == tuple(evenly(trained, len(found.trained)))
    assert len(gzip.decompress((tmp_path / FILE).read_bytes())) <= 10_000
    more = found.model_copy(update={"trained": tuple(evenly(trained, len(found.trained) + 1))})
    assert len(json.dumps(more.model_dump(), indent=0, ensure_ascii=False).encode()) > 9_990


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be"),
        (b'{"trained": "Say two."}', "trained"),
        (b'{"trained": [""]}', r"trained\.0"),
        (b'{"examples": [{"description": "x"}]}', r"examples\.0\.input"),
        (json.dumps({"trained": ["x"] * 4097}).encode(), "trained"),
        (b" " * (MOST_BYTES + 1), "more than 16,777,216 bytes"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, content, message):
    (tmp_path / FILE).write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


def test_a_file_that_is_cut_or_not_compressed_is_named(tmp_path):
    write(tmp_path, SOME)
    whole = (tmp_path / FILE).read_bytes()
    for content in (whole[:-9], whole[:40], b"{}", whole[:20] + bytes(20) + whole[40:]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read(tmp_path)


def test_the_packaged_model_has_its_own():
    found = read(PRETRAINED / "smollm2-family")
    assert len(set(found.trained)) == 1585
    assert len(found.examples) == 5
