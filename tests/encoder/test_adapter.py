"""Adapters of text encoders: the merged weights are those of PEFT itself, and what does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from encoder_adapters import save_encoder_adapter
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from t2l_jax.encoder.adapter import add_adapter
from t2l_jax.errors import UserError
from t2l_jax.io.encoder_adapter import adapted, copy_adapter, is_adapter
from t2l_jax.io.peft import digest

PATTERNS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {r"1\.output\.dense": 12}},
}


def tiny() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertModel(config).eval()


def save_adapter(folder: Path, **options: object) -> torch.nn.Module:
    return save_encoder_adapter(folder, tiny(), "hf:org/base", **options)


@pytest.mark.parametrize("name", PATTERNS)
def test_merged_weights_compute_what_peft_computes(tmp_path: Path, name: str) -> None:
    reference = save_adapter(tmp_path, **PATTERNS[name])
    model, tokens = tiny(), torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        before = model(tokens).last_hidden_state
        add_adapter(model, tmp_path)
        after, wanted = (m(tokens).last_hidden_state for m in (model, reference))
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 0.05


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    save_adapter(tmp_path)
    assert is_adapter(tmp_path)
    assert adapted(tmp_path) == "hf:org/base"
    (tmp_path / "modules.json").write_text("[]")  # a whole model of sentence-transformers, with an adapter inside
    assert not is_adapter(tmp_path)


def options_of(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder: Path, change: object) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


QUERY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
BREAKS = {
    "the option 'use_dora' = True is not supported": lambda folder: options_of(folder, use_dora=True),
    "does not fit the encoder": lambda folder: options_of(folder, r=4),
    "damaged or cut short": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99),
    "an A and a B for each module": lambda folder: tensors_of(folder, lambda tensors: tensors.pop(QUERY)),
    r"query is \(16, 3\) x \(3, 9\), which does not fit": lambda folder: tensors_of(
        folder, lambda tensors: tensors.update({QUERY: torch.zeros(3, 9)})
    ),
    "query is .* which does not fit the encoder": lambda folder: tensors_of(
        folder, lambda tensors: tensors.update({QUERY: torch.zeros(16)})
    ),
    "query.lora_A.weight is not finite": lambda folder: tensors_of(
        folder, lambda tensors: tensors[QUERY].fill_(float("nan"))
    ),
    "holds something else than an A and a B": lambda folder: tensors_of(folder, lambda tensors: tensors.clear()),
    "adapter_model.safetensors": lambda folder: (folder / "adapter_model.safetensors").unlink(),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path, message: str) -> None:
    save_adapter(tmp_path)
    BREAKS[message](tmp_path)
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        add_adapter(model, tmp_path)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("source", [None, "", "sentence-transformers/all-MiniLM-L6-v2"])
def test_an_adapter_must_name_the_source_of_its_encoder(tmp_path: Path, source: str | None) -> None:
    save_adapter(tmp_path)
    options_of(tmp_path, base_model_name_or_path=source)
    with pytest.raises(UserError, match=r"adapter_config\.json: base_model_name_or_path is .*: write hf:org/name"):
        adapted(tmp_path)


def test_a_copy_is_the_same_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "one")
    copy_adapter(tmp_path / "one", tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    options_of(tmp_path / "two", r=4)
    assert digest(tmp_path / "one") != digest(tmp_path / "two")
