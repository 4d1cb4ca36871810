"""`t2l models | export`: what a folder holds is described or converted, or refused in one line."""

import numpy as np
import pytest
from command_line import assert_refused, run

from t2l_jax.io.base import load_family
from t2l_jax.io.gguf_adapter import load_gguf_adapter
from t2l_jax.io.peft import load_peft


def test_models(capsys, place, monkeypatch):
    status, out, _ = run(capsys, "models", "models/good")
    assert status == 0
    assert out.startswith("models/good\n  base model    org/tiny")
    assert_refused(capsys, "models/cut/model.safetensors: damaged or cut short", "models", "models/good", "models/cut")


def test_export_of_an_adapter(capsys, place):
    arguments = ("export", "models/adapter-fits", "--format", "gguf", "--base", "models/base", "--out", "new/a.gguf")
    assert run(capsys, *arguments) == (0, "adapter for llama.cpp's llama models written to new/a.gguf\n", "")
    expected = load_peft("models/adapter-fits").weights["q_proj"]["a"]
    found = load_gguf_adapter("new/a.gguf", load_family("models/base")[1]).weights["q_proj"]["a"]
    np.testing.assert_array_equal(found, expected)
    assert run(capsys, *arguments[:-1], "half.gguf", "--dtype", "f16")[0] == 0
    half = load_gguf_adapter("half.gguf", load_family("models/base")[1]).weights["q_proj"]["a"]
    np.testing.assert_array_equal(half, np.float32(np.float16(expected)))


GGUF = ("--format", "gguf", "--out", "new.gguf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models/adapter-fits", "--out", "new"), "models/adapter-fits: an adapter, which --format gguf exports"),
        (("models/good", *GGUF), "models/good: no adapter_config.json in it: gguf is for adapters"),
        (("nowhere", *GGUF), "nowhere/adapter_config.json cannot be read"),
        (("models/good", "--out", "new", "--dtype", "f16"), "--base and --dtype are for --format gguf"),
        (("models/good", "--out", "new", "--base", "models/base"), "--base and --dtype are for --format gguf"),
        (
            ("models/adapter-fits", *GGUF),
            "models/adapter-fits: its base model is not found; give its location as --base (hf:org/tiny: could not be",
        ),
        (
            ("models/adapter-cut", *GGUF),
            "adapter_config.json: names no base_model_name_or_path; give the base",
        ),
        (("models/adapter-cut", *GGUF, "--base", "models/base"), "adapter_model.safetensors: damaged or cut short"),
        (("models/adapter-wide", *GGUF, "--base", "models/base"), "q_proj is 64 -> 64, the base model's 16 -> 16"),
        (("models/adapter-fits", *GGUF, "--base", "full"), "full: no weights found"),
        (("models/adapter-fits", *GGUF[:3], "full/thesis.tex", "--base", "models/base"), "exists already"),
        (("models/adapter-fits", *GGUF[:3], "file/a", "--base", "models/base"), "file/a cannot be"),
    ],
)
def test_export_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "export", *arguments)
