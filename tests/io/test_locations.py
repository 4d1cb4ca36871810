"""Local folders and the hub: what is found, what is asked for, and by what it is known."""

import os

import huggingface_hub
import pytest

from t2l_jax.errors import UserError
from t2l_jax.io import locations
from t2l_jax.io.locations import resolve


def test_local_folder_and_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"")
    assert resolve(str(tmp_path)).path == tmp_path
    assert resolve(tmp_path / "model.gguf").path == tmp_path / "model.gguf"


def test_missing_and_unusable_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such model folder; give an existing path, hf:org/name or pypi:"):
        resolve(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt: not a model"):
        resolve(str(tmp_path / "notes.txt"))


def test_hub_asks_for_no_pickles_and_no_code(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **options: asked.update(options, repo=repo) or str(tmp_path / "snapshots" / "abc"),
    )
    assert resolve("hf:org/some-model@v1.0").path == tmp_path / "snapshots" / "abc"
    assert (asked["repo"], asked["revision"]) == ("org/some-model", "v1.0")
    names = ["model.safetensors", "model.safetensors.index.json", "flax_model.msgpack", "1_Pooling/config.json"]
    refused = [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/model.safetensors",
        "modeling_x.py",
        "q4.gguf",
    ]
    wanted = huggingface_hub.utils.filter_repo_objects(
        [*names, *refused], allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(wanted) == names


def test_hub_is_asked_for_no_weights_where_the_config_is_enough(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: asked.update(options) or tmp_path)
    resolve("hf:org/some-model", config_only=True)
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=asked["allow_patterns"])) == names[:1]


def test_hub_gives_one_gguf_file_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, file, revision: str(tmp_path / f"{repo}@{revision}" / "snapshots" / "abc" / file),
    )
    assert resolve("hf:org/name:q4.gguf").path == tmp_path / "org/name@None" / "snapshots" / "abc" / "q4.gguf"


def test_hub_gives_all_parts_of_a_gguf_file(monkeypatch, tmp_path):
    asked = []

    def download(repo, file, revision):
        asked.append(file)
        return str(tmp_path / "snapshots" / "abc" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = resolve("hf:org/name:Q4/m-00001-of-00003.gguf").path
    assert found == tmp_path / "snapshots" / "abc" / "Q4" / "m-00001-of-00003.gguf"
    assert asked == [f"Q4/m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("x" * 300, "File name too long"),
        ("a\0b", "no such model folder"),
        ("~nobody-at-all/x", "no such model folder"),
        ("a\udcff", "not UTF-8"),
    ],
)
def test_paths_that_cannot_be_are_refused(location, message):
    with pytest.raises(UserError, match=message):
        resolve(location)


def test_hub_errors_name_the_source(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf:nobody/nothing: could not be fetched .* offline, only models"):
        resolve("hf:nobody/nothing")

    def time_out(*_, **__):
        raise locations.HTTP_ERROR("timed out")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", time_out)
    with pytest.raises(UserError, match=r"hf:org/name: could not be fetched \(timed out\)"):
        resolve("hf:org/name")
    with pytest.raises(UserError, match=r"hf:nothing: write hf:org/name"):
        resolve("hf:nothing")


def test_an_identity_changes_with_the_files(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = resolve(tmp_path)
    assert resolve(tmp_path).identity == before.identity
    os.utime(tmp_path / "config.json", (1, 1))
    assert resolve(tmp_path).identity != before.identity
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"1")
    before = resolve(parts[0])
    assert resolve(parts[0]).identity == before.identity
    parts[1].write_bytes(b"22")
    assert resolve(parts[0]).identity != before.identity
    folder = tmp_path / "models--org--name" / "snapshots" / "abc123"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(folder))
    assert resolve("hf:org/name").identity == "abc123"
