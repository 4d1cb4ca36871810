"""A folder that all processes must see: one process with stand-ins."""

import jax
import pytest

from t2l_jax.errors import UserError
from t2l_jax.io import shared


def test_a_folder_that_everyone_sees_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "several", lambda: True)
    shared.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "several", lambda: True)
    monkeypatch.setattr(shared, "from_main", lambda name: ".there.partial")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match=f"^{tmp_path}: not the folder of host 0: give an --out on a disk that all"):
        shared.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".there.partial").touch()
    shared.check_shared(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "several", lambda: True)
    with pytest.raises(UserError, match=f"^{tmp_path}/missing cannot be written: No such file"):
        shared.check_shared(tmp_path / "missing")
