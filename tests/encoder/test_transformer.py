"""The Flax transformer against transformers' own models with the same random weights; its adapter against PEFT's."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoder_adapters import save_encoder_adapter
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    GteConfig,
    GteModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from t2l_jax.encoder import transformer
from t2l_jax.encoder.adapter import load_adapter
from t2l_jax.encoder.families import FAMILIES, Unsupported
from t2l_jax.encoder.transformer import Transformer, TransformerConfig
from t2l_jax.encoder.weights import load_transformer
from t2l_jax.errors import UserError
from t2l_jax.io.files import read_json
from t2l_jax.lora import merge

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.6,  # so that every part shows in the result
    "layer_norm_eps": 1e-3,
}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "bert without pooler, relu": lambda: BertModel(BertConfig(**SIZES, hidden_act="relu"), add_pooling_layer=False),
    "bert, gelu_new": lambda: BertModel(BertConfig(**SIZES, hidden_act="gelu_new", type_vocab_size=1)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, pad_token_id=3)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SIZES)),
    "gte": lambda: GteModel(GteConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 50.0})),
    "gte without token types": lambda: GteModel(GteConfig(**SIZES, type_vocab_size=0)),
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with biases and norms that are not those of a new one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.randn_like(weight) * 0.3 + ("norm" in name.lower() and "weight" in name))
    return model.eval()


def save(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model = randomised(MODELS[name]())
    model.save_pretrained(folder)
    return model


def load(folder: Path) -> tuple[TransformerConfig, dict[str, Any]]:
    values = read_json(folder / "config.json")
    family = FAMILIES[values["model_type"]]
    config = family.config(values, folder / "config.json")
    return config, load_transformer(folder, family, config)


def rows(pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 12, 7 and 1 tokens; one of the first row's is the blank token."""
    tokens = np.random.default_rng(0).integers(4, 40, (3, 12)).astype(np.int32)
    mask = np.arange(12) < np.array([[12], [7], [1]])
    tokens[0, 5] = pad
    return np.where(mask, tokens, pad).astype(np.int32), mask


def theirs(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        ids, attended = torch.tensor(tokens, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
        return model(input_ids=ids, attention_mask=attended).last_hidden_state.numpy()


def ours(config: TransformerConfig, params: dict[str, Any], tokens: Any, mask: Any, adapter: Any = None) -> np.ndarray:
    states = Transformer(config).apply({"params": params}, jnp.asarray(tokens), jnp.asarray(mask), adapter)
    return np.asarray(states)


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    tokens, mask = rows(model.config.pad_token_id or 0)
    config, params = load(tmp_path)
    np.testing.assert_allclose(
        ours(config, params, tokens, mask)[mask], theirs(model, tokens, mask)[mask], rtol=1e-4, atol=1e-5
    )


def test_gte_with_ntk_scaling_is_the_architecture_with_those_frequencies(tmp_path: Path) -> None:
    """GTE-large v1.5: its folder names the architecture "new"; transformers has it, but not this scaling."""
    model = save("gte", tmp_path)
    values = {name: value for name, value in read_json(tmp_path / "config.json").items() if name in SIZES}
    scaling = {"model_type": "new", "rope_theta": 160.0, "rope_scaling": {"type": "ntk", "factor": 2.0}}
    config = FAMILIES["new"].config({**values, **scaling, "type_vocab_size": 1}, tmp_path / "config.json")
    params = load_transformer(tmp_path, FAMILIES["new"], config)
    pairs = np.arange(4)
    frequencies = torch.tensor((160.0 * 2) ** (-2 * pairs / 8) / 2 ** (2 / 8), dtype=torch.float32)
    plain = ours(load(tmp_path)[0], params, *rows())
    model.rotary_emb.inv_freq = frequencies
    tokens, mask = rows()
    states = ours(config, params, tokens, mask)
    np.testing.assert_allclose(states[mask], theirs(model, tokens, mask)[mask], rtol=1e-4, atol=1e-5)
    assert np.abs(states - plain)[mask].max() > 0.01


def test_queries_in_blocks_see_what_they_see_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("bert", tmp_path)
    config, params = load(tmp_path)
    whole = ours(config, params, *rows())
    monkeypatch.setattr(transformer, "QUERY_BLOCK", 4)
    jax.clear_caches()
    np.testing.assert_allclose(ours(config, params, *rows()), whole, rtol=1e-5, atol=1e-6)


def test_weights_in_half_precision_are_read_in_float32(tmp_path: Path) -> None:
    model = save("bert", tmp_path).half()
    model.save_pretrained(tmp_path)
    config, params = load(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens, mask = rows()
    np.testing.assert_allclose(
        ours(config, params, tokens, mask)[mask], theirs(model.float(), tokens, mask)[mask], rtol=1e-4, atol=1e-5
    )


PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {r"1\.output\.dense": 12}},
}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_adapter_is_what_peft_makes_of_it_applied_or_merged(name: str, tmp_path: Path) -> None:
    model = save("bert", tmp_path)
    config, params = load(tmp_path)
    tokens, mask = rows()
    before = ours(config, params, tokens, mask)
    reference = save_encoder_adapter(tmp_path / "adapter", model, "hf:org/base", **PATTERNS[name])
    adapter = load_adapter(tmp_path / "adapter", FAMILIES["bert"], config)
    applied = ours(config, params, tokens, mask, adapter)
    np.testing.assert_allclose(applied[mask], theirs(reference, tokens, mask)[mask], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours(config, merge(params, adapter), tokens, mask), applied, rtol=1e-4, atol=1e-4)
    assert np.abs(applied - before).max() > 0.05


def test_a_gradient_reaches_the_adapter_and_the_embeddings(tmp_path: Path) -> None:
    model = save("gte", tmp_path)
    del model
    config, params = load(tmp_path)
    tokens, mask = (jnp.asarray(array) for array in rows())
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, zeros(config))

    def loss(params: Any, adapter: Any) -> jax.Array:
        return (Transformer(config).apply({"params": params}, tokens, mask, adapter)[0, 0, 0]) ** 2

    to_params, to_adapter = jax.grad(loss, argnums=(0, 1))(params, adapter)
    read = np.unique(np.asarray(tokens)[0])
    assert np.abs(np.asarray(to_params["embedding"])[read]).max(1).min() > 0
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(to_adapter))


def zeros(config: TransformerConfig) -> Any:
    from t2l_jax.lora import Adapter

    spec = config.lora_spec(tuple(config.projection_widths()), 2, 4.0)
    return Adapter(jax.tree.map(jnp.zeros, spec.shapes(), is_leaf=lambda leaf: isinstance(leaf, tuple)), spec)


def test_an_adapter_of_packed_projections_is_cut_where_their_rows_are(tmp_path: Path) -> None:
    save("gte", tmp_path)
    config, params = load(tmp_path)
    draw = np.random.default_rng(0)
    shapes = {"attention.qkv_proj": (48, 16), "mlp.up_gate_proj": (48, 16), "mlp.down_proj": (16, 24)}
    pairs = {
        f"encoder.layer.1.{name}": (draw.normal(size=(3, i)), draw.normal(size=(o, 3)))
        for name, (o, i) in shapes.items()
    }
    tensors = {f"base_model.model.{place}.lora_A.weight": a.astype(np.float32) for place, (a, _) in pairs.items()}
    tensors |= {f"base_model.model.{place}.lora_B.weight": b.astype(np.float32) for place, (_, b) in pairs.items()}
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": [name.split(".")[1] for name in shapes]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(options))
    changed = merge(params, load_adapter(tmp_path / "adapter", FAMILIES["new"], config))["layers"]
    expected = {name: (2 * b @ a).T for name, (a, b) in zip(shapes, pairs.values(), strict=True)}
    packed = {
        "attention.qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "mlp.up_gate_proj": ("up_proj", "gate_proj"),  # in the order of the file's rows
        "mlp.down_proj": ("down_proj",),
    }
    for place, names in packed.items():
        delta = [changed[name]["kernel"] - params["layers"][name]["kernel"] for name in names]
        np.testing.assert_allclose(np.concatenate(delta, -1)[1], expected[place], rtol=1e-4, atol=1e-5)
        assert not np.concatenate(delta, -1)[0].any()


def test_what_no_embedding_needs_is_not_read_and_what_is_unknown_goes_elsewhere(tmp_path: Path) -> None:
    save("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(file).items()}  # as of a whole language model
    more = {"bert.embeddings.position_ids": np.arange(32)[None], "cls.predictions.bias": np.zeros(40, np.float32)}
    _, params = load(tmp_path)
    save_file(tensors | more, file)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[1], params)
    save_file(tensors | {"bert.encoder.layer.0.gate": np.zeros(3, np.float32)}, file)
    with pytest.raises(Unsupported, match=r"the tensor 'encoder\.layer\.0\.gate'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "positions of the type 'relative_key'"),
        ("bert", {"is_decoder": True}, "a decoder of this architecture"),
        ("gte", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rotary positions scaled by 'yarn'"),
        ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type = 'rms_norm'"),
        ("gte", {"logn_attention_scale": True}, "logn_attention_scale = True"),
        ("gte", {"position_embedding_type": "absolute"}, "position_embedding_type = 'absolute'"),
    ],
)
def test_an_option_that_is_not_computed_is_named(name: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        FAMILIES[name].config({**SIZES, **changes}, Path("config.json"))


def test_a_config_without_room_for_positions_is_refused() -> None:
    with pytest.raises(UserError, match=r"config\.json: pad_token_id leaves none of the 32 positions"):
        FAMILIES["roberta"].config({**SIZES, "pad_token_id": 31}, Path("config.json"))
