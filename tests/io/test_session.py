"""The record of a run's environment: it grows by a session, and a damaged one is refused by name."""

import json
import sys

import jax
import pytest

from t2l_jax.errors import UserError
from t2l_jax.io.session import session


def record(folder, start=0):
    with session(folder, start, jax.devices()[:1]):
        pass
    return json.loads((folder / "environment.json").read_text())["sessions"]


def test_sessions_are_added(tmp_path):
    assert [mine["start"] for mine in (record(tmp_path, 3), record(tmp_path, 5))[1]] == [3, 5]


@pytest.mark.parametrize("text", ['{"sessions": 5}', '{"sessions": null}', '{"sessions": [3]}', "{}", "[]", "{"])
def test_a_damaged_record_is_refused_and_kept(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(UserError, match=r"environment\.json: "):
        record(tmp_path)
    assert (tmp_path / "environment.json").read_text() == text


def test_a_command_whose_bytes_are_not_utf8_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["t2l", "out\udcff"])
    record(tmp_path)
    assert "out\ufffd" in record(tmp_path)[0]["command"]
