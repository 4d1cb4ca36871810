"""`t2l models`: what a folder holds is described, or refused in one line."""

from command_line import assert_refused, run


def test_models(capsys, place, monkeypatch):
    status, out, _ = run(capsys, "models", "models/good")
    assert status == 0
    assert out.startswith("models/good\n  base model    org/tiny")
    assert_refused(capsys, "models/cut/model.safetensors: damaged or cut short", "models", "models/good", "models/cut")
