"""Adapters that `peft` reads from our folders, and we from its own: on a tiny random Llama the logits are equal."""

import json

import numpy as np
import peft
import pytest
import torch
from peft_reference import (
    deltas,
    edit_tensors,
    merged_logits,
    our_logits,
    random_adapter,
    torch_logits,
    torch_model,
    write_config,
)
from safetensors.numpy import load_file

from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.peft import PeftFormat, load_peft, save_peft
from t2l_jax.lora import PROJECTIONS, stack

# What transformers says of itself when peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("rslora", "rank", "names"),
    [
        (False, 8, ("q_proj", "v_proj")),
        (True, 1, ("q_proj", "v_proj")),
        (True, 8, tuple(PROJECTIONS)),
        (False, 1, tuple(PROJECTIONS)),
    ],
)
def test_peft_reads_ours(base, tmp_path, rslora, rank, names):
    _, config, params = base
    adapter = random_adapter(config.lora_spec(names, rank, alpha=16.0, rslora=rslora))
    save_peft(adapter, tmp_path / "out", base_model="org/tiny", description="Answer briefly.\n")
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "out"))
    ours = our_logits(config, params, adapter)
    assert np.abs(ours - our_logits(config, params)).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert (tmp_path / "out" / "description.txt").read_bytes() == b"Answer briefly.\n"
    again = deltas(load_peft(tmp_path / "out", config))
    for name, delta in deltas(adapter).items():
        np.testing.assert_allclose(again[name], delta, atol=1e-6)


def test_every_reader_sees_scale_one_and_whole_numbers(base, tmp_path):
    adapter = random_adapter(base[1].lora_spec(rank=8, alpha=16.0, rslora=True))  # the scale is 5.657
    save_peft(adapter, tmp_path / "out", base_model="org/tiny")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"], config["use_rslora"]) == (8, 8, False)
    assert isinstance(config["lora_alpha"], int)
    assert config["base_model_name_or_path"] == "org/tiny"
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    path = "base_model.model.model.layers.1.self_attn.q_proj"
    assert tensors[f"{path}.lora_A.weight"].shape == (8, 32)
    delta = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    np.testing.assert_allclose(delta.T, deltas(adapter)["q_proj"][1], atol=1e-5)
    assert not (tmp_path / "out" / "description.txt").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(base, tmp_path, dtype):
    adapter = random_adapter(base[1].lora_spec(tuple(PROJECTIONS), rank=3))
    save_peft(adapter, tmp_path / "out", dtype=dtype)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "out"))
    ours = merged_logits(base, load_peft(tmp_path / "out", base[1]))
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    np.testing.assert_allclose(ours, merged_logits(base, adapter), atol=0.3)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert size == PeftFormat(adapter.spec, dtype=dtype).num_bytes


def test_a_batch_is_one_folder_each(base, tmp_path):
    spec = base[1].lora_spec(rank=2)
    adapters = [random_adapter(spec, seed) for seed in range(3)]
    save_peft(stack(adapters), tmp_path / "out", description=["a", "b", "c"])
    save_peft(stack(adapters), tmp_path / "named", names=["x", "y", "z"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000", "0001", "0002"]
    assert (tmp_path / "out" / "0002" / "description.txt").read_text() == "c"
    for index, name in enumerate("xyz"):
        read = load_peft(tmp_path / "named" / name)
        for name, delta in deltas(adapters[index]).items():
            np.testing.assert_allclose(deltas(read)[name], delta, atol=1e-6)


def test_saving_refuses(base, tmp_path):
    adapter = random_adapter(base[1].lora_spec(rank=2))
    batch = stack([adapter, adapter])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="exists already"):
        save_peft(adapter, tmp_path / "mine")
    with pytest.raises(UserError, match="path separator"):
        save_peft(batch, tmp_path / "out", names=["a", "../b"])
    with pytest.raises(UserError, match="2 adapters need"):
        save_peft(batch, tmp_path / "out", names=["a", "a"])
    with pytest.raises(UserError, match="2 adapters need"):
        save_peft(batch, tmp_path / "out", description=["a"])
    with pytest.raises(UserError, match="no names"):
        save_peft(adapter, tmp_path / "out", names=["a"])
    with pytest.raises(UserError, match="one batch axis"):
        save_peft(stack([batch]), tmp_path / "out")
    with pytest.raises(UserError, match="not 'int8'"):
        save_peft(adapter, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match="do not fit"):
        save_peft(adapter.replace(spec=base[1].lora_spec(rank=3)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": list(PROJECTIONS)},
        {"r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 6.5, "target_modules": r".*layers\.[02]\.(self_attn\.k_proj|mlp\.up_proj)"},
        {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
        {
            "r": 4,
            "lora_alpha": 12,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"q_proj": 2, r"model.layers.1.self_attn.v_proj": 7},
            "alpha_pattern": {"gate_proj": 3, r"layers\.[01]\.self_attn\.q_proj": 5},
        },
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"_proj": 3, "v_proj": 5}},
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"^model.layers.2.self_attn.q_proj": 32}},
    ],
    ids=["all", "rslora", "regex", "one-layer", "patterns", "partial-name", "alpha-only"],
)
def test_we_read_theirs(base, tmp_path, options):
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="gaussian", **options)
    model = peft.get_peft_model(torch_model(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path, base[1])
    ours = merged_logits(base, adapter)
    assert np.abs(ours - our_logits(*base[1:])).max() > 0.01
    np.testing.assert_allclose(ours, torch_logits(model), atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*\.v_proj"},
    ],
)
def test_tensors_that_peft_leaves_aside_are_refused(base, folder, options):
    """PEFT ignores them without a word: one of the two files is another adapter's."""
    write_config(folder, **options)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors adapts .*_proj, adapter_config\.json does not"):
        load_peft(folder, base[1])
    modules = AdapterConfig.read(folder / "adapter_config.json")

    def drop(tensors):
        for name in [
            name for name in tensors if not modules.adapts(name.split(".lora_")[0][len("base_model.model.") :])
        ]:
            del tensors[name]

    edit_tensors(folder, drop)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), folder))
    np.testing.assert_allclose(merged_logits(base, load_peft(folder, base[1])), theirs, atol=2e-5)


def test_names_with_the_adapters_name_are_those_of_peft(base, folder):
    plain = merged_logits(base, load_peft(folder, base[1]))

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    edit_tensors(folder, rename)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), folder))
    np.testing.assert_allclose(plain, theirs, atol=2e-5)
    np.testing.assert_array_equal(merged_logits(base, load_peft(folder, base[1])), plain)


def test_uniform_ranks_keep_weights_and_scale(base, tmp_path):
    model = peft.get_peft_model(torch_model(base), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path)
    assert adapter.spec == base[1].lora_spec(("v_proj",), rank=2, alpha=3.0, rslora=False)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        adapter.weights["v_proj"]["a"][2], tensors["base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"]
    )
