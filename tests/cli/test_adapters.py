"""`t2l mix`: the sum is the algebra's, or one line says why there is none."""

import json

import numpy as np
import pytest
from command_line import assert_refused, run
from peft_reference import deltas, random_adapter, write_config
from tiny_published import SPEC

from t2l_jax.algebra import compress, concatenate, mix
from t2l_jax.io.peft import load_peft, save_peft
from t2l_jax.lora import LoraModule, LoraSpec

WIDE = LoraSpec((LoraModule("q_proj", 64, 64),), num_layers=2, rank=2)
SMALL = LoraSpec((LoraModule("v_proj", 16, 8),), num_layers=2, rank=1)


@pytest.fixture
def adapters(place):
    """The folders x and y of one spec, small of another, wide of another base, and one whose base has no name."""
    made = {}
    for seed, (name, spec) in enumerate({"x": SPEC, "y": SPEC, "small": SMALL, "wide": WIDE, "nameless": SPEC}.items()):
        save_peft(random_adapter(spec, seed), place / name, base_model=None if name == "nameless" else "org/tiny")
        made[name] = load_peft(place / name)
    return made


def assert_equal(found, expected):
    assert found.spec == expected.spec
    for name, delta in deltas(expected).items():
        np.testing.assert_allclose(deltas(found)[name], delta, rtol=0, atol=1e-6)


def test_the_exact_sum(capsys, place, adapters):
    expected = concatenate([adapters["x"], adapters["small"]], [0.5, 2.0])
    done = run(capsys, "mix", "x/", "small/", "--weights", "0.5", "2", "--out", "new/sum")
    assert done == (0, "adapter of rank 3 written to new/sum\n", "")
    assert_equal(load_peft("new/sum"), expected)
    assert json.loads((place / "new/sum/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_a_difference(capsys, place, adapters):
    assert run(capsys, "mix", "x", "x", "--weights", "1", "-1", "--out", "new")[0] == 0
    assert all(np.abs(delta).max() < 1e-6 for delta in deltas(load_peft("new")).values())


@pytest.mark.parametrize(("options", "rank"), [((), 2), (("--rank", "1"), 1)])
def test_a_sum_of_small_rank(capsys, place, adapters, options, rank):
    both = [adapters["x"], adapters["y"]]
    expected, error = compress(concatenate(both, [1.0, 1.0]), rank)
    arguments = ("mix", "x", "y", "--weights", "1", "1", "--out", "new", "--method", "svd", *options)
    assert run(capsys, *arguments) == (
        0,
        f"adapter of rank {rank} written to new, relative error {float(error):.2g}\n",
        "",
    )
    assert_equal(load_peft("new"), expected)


def test_a_sum_of_factors(capsys, place, adapters):
    arguments = ("mix", "x", "y", "--weights", "0.25", "0.75", "--out", "new", "--method", "factors")
    assert run(capsys, *arguments) == (0, "adapter of rank 2 written to new\n", "")
    assert_equal(load_peft("new"), mix([adapters["x"], adapters["y"]], [0.25, 0.75]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "y", "--weights", "1"), "x, y: adapters need one weight each, got 2 adapters and 1 weights"),
        (("x", "y", "--weights", "1", "inf"), "x, y: the weight of an adapter must be a finite number, got inf"),
        (("--weights", "1"), "give at least one folder"),
        (("x", "nowhere", "--weights", "1", "1"), "nowhere/adapter_config.json cannot be read"),
        (("x", "models/adapter-cut", "--weights", "1", "1"), "models/adapter-cut: an adapter for a base model without"),
        (
            ("x", "nameless", "--weights", "1", "1"),
            "nameless: an adapter for a base model without a name, x is one for",
        ),
        (
            ("x", "wide", "--weights", "1", "1"),
            "x, wide: the adapters are of different base models: q_proj is 16 -> 16",
        ),
        (
            ("x", "small", "--weights", "1", "1", "--method", "factors"),
            "x, small: factors are added for adapters of one",
        ),
        (("x", "y", "--weights", "1", "1", "--rank", "2"), "--rank is for --method svd"),
        (("x", "y", "--weights", "1", "1", "--method", "svd", "--rank", "5"), "to a rank from 1 to that, not 5"),
        (("x", "y", "--weights", "1", "1", "--method", "svd", "--rank", "0"), "to a rank from 1 to that, not 0"),
        (("x", "y", "--weights", "1e39", "1e39"), "too large for float32"),
        (("x", "y", "--weights", "1", "1", "--out", "full"), "full exists already"),
    ],
)
def test_mix_refuses(capsys, adapters, arguments, message):
    out = () if "--out" in arguments else ("--out", "new")
    assert_refused(capsys, message, "mix", *arguments, *out)


def test_adapters_of_two_base_models_are_refused(capsys, place, adapters):
    write_config(place / "y", base_model_name_or_path="org/other")
    message = "y: an adapter for org/other, x is one for org/tiny: mix adapters of one base_model_name_or_path"
    assert_refused(capsys, message, "mix", "x", "y", "--weights", "1", "1", "--out", "new")
