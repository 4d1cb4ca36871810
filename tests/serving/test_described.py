"""The folder of a description: written once, by name, and never for anything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_published import HashEncoder, save_published, snapshot, tiny_config

from t2l_jax import model as model_module
from t2l_jax.errors import UserError
from t2l_jax.io.peft import load_peft
from t2l_jax.serving.described import DescribedFolders


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DescribedFolders:
    monkeypatch.setattr(model_module, "load_encoder", lambda source, **_: HashEncoder())
    location = save_published(tmp_path / "model", tiny_config())
    return DescribedFolders(tmp_path / "described", str(location), most=2)


def test_a_description_is_written_once(folders: DescribedFolders) -> None:
    path = folders.find("t2l: Say a. ")
    assert path is not None
    before = snapshot(path)
    assert folders.find("t2l:Say a.") == folders.find("t2l:Say a") == path
    assert snapshot(path) == before
    found, expected = load_peft(path), folders.model.generate(["Say a."])[0]
    for module, sides in expected.weights.items():
        np.testing.assert_allclose(found.weights[module]["a"], sides["a"], rtol=1e-5)
        np.testing.assert_allclose(found.weights[module]["b"], expected.spec.scale * sides["b"], rtol=1e-5)


def test_other_names_are_nobodys(folders: DescribedFolders) -> None:
    assert folders.find("last") is None
    assert folders.find("../../etc") is None
    assert not folders.folder.exists()


@pytest.mark.parametrize("name", ["t2l:", "t2l:  ", "t2l:\ud800", "t2l:" + "x" * 10**6])
def test_what_is_no_description_is_refused(folders: DescribedFolders, name: str) -> None:
    with pytest.raises(UserError, match="the description"):
        folders.find(name)
    assert not folders.folder.exists()


def test_a_name_never_leaves_the_folder(folders: DescribedFolders) -> None:
    path = folders.find("t2l:../../../etc/passwd")
    assert path is not None
    assert path.parent == folders.folder


def test_there_are_no_more_than_allowed(folders: DescribedFolders) -> None:
    assert folders.find("t2l:Say a.") != folders.find("t2l:Say b.")
    with pytest.raises(UserError, match="holds 2 adapters, as many as it may"):
        folders.find("t2l:Say c.")
    assert folders.find("t2l:Say b.") is not None


def test_the_base_models_name_is_chosen(folders: DescribedFolders, tmp_path: Path) -> None:
    named: Any = DescribedFolders(folders.folder, folders.location, base="served")
    path = named.find("t2l:Say a.")
    assert '"base_model_name_or_path": "served"' in (path / "adapter_config.json").read_text()
    assert folders.find("t2l:Say a.") != path
