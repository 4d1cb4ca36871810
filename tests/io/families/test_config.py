"""Configs as files hold them, of transformers 4 and 5; whether the numbers are right: tests/decoder/test_model.py."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import FAMILIES

from t2l_jax.decoder.attention import LayerAttention, Rotary
from t2l_jax.decoder.rotary_scaling import Llama3Scaling
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_MODEL_TYPE
from t2l_jax.io.families.config import decoder_config

FILE = Path("model/config.json")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "max_position_embeddings": 2048,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def windows(**config) -> tuple[int | None, ...]:
    return tuple(layer.window for layer in decoder_config({**LLAMA, **config}, FILE).attention.layers)


def test_llama():
    config = decoder_config(LLAMA, FILE)
    assert (config.vocab_size, config.width, config.num_layers, config.mlp_width) == (100, 64, 4, 128)
    assert (config.norm_eps, config.tied_head, config.activation, config.embed_scale) == (1e-5, False, "silu", 1.0)
    attention = config.attention
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (4, 2, 16)
    assert attention.layers == (LayerAttention(window=None, rotary=Rotary(500000.0)),) * 4


def test_what_published_files_hold_beside_what_is_read():
    """SmolLM2's and Gemma 2's own config.json."""
    smollm2 = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {}}}
    assert decoder_config({**LLAMA, **smollm2}, FILE) == decoder_config(LLAMA, FILE)
    gemma = {**LLAMA, "model_type": "gemma2", "sliding_window": 64}
    assert decoder_config({**gemma, "sliding_window_size": 64}, FILE) == decoder_config(gemma, FILE)
    with pytest.raises(UserError, match="sliding_window_size = 32 is not supported"):
        decoder_config({**gemma, "sliding_window_size": 32}, FILE)


def test_absent_attributes_mean_the_defaults_of_transformers():
    gemma = decoder_config({**LLAMA, "model_type": "gemma2", "rope_theta": 10_000.0}, FILE)
    assert (gemma.tied_head, gemma.attention.head_dim, gemma.attention.scale) == (True, 256, 1 / 16)
    assert (gemma.logit_softcap, gemma.attention.softcap, gemma.activation) == (30.0, 50.0, "gelu_tanh")
    assert (gemma.embed_scale, gemma.norm_offset, gemma.post_norms) == (8.0, 1.0, True)
    without_heads = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert decoder_config(without_heads, FILE).attention.num_kv_heads == 4


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **SCALING}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **SCALING}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **SCALING}},
    ],
    ids=["rope_type", "type", "rope_parameters"],
)
def test_llama3_scaling_in_every_spelling(rope):
    attention = decoder_config({**LLAMA, **rope}, FILE).attention
    assert {layer.rotary for layer in attention.layers} == {Rotary(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192))}


def test_windows_of_each_family():
    assert windows(model_type="mistral", sliding_window=7) == (7, 7, 7, 7)
    assert windows(model_type="mistral", sliding_window=None) == (None,) * 4
    assert windows(model_type="gemma2", sliding_window=7) == (7, None, 7, None)
    assert windows(model_type="qwen2", sliding_window=7) == (None,) * 4
    assert windows(model_type="qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=3) == (
        None,
    ) * 3 + (7,)
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert windows(model_type="gemma2", sliding_window=7, layer_types=kinds) == (None, 7, 7, None)


def test_biases_of_each_family():
    def biases(**config):
        decoder = decoder_config({**LLAMA, **config}, FILE)
        return decoder.attention.qkv_bias, decoder.attention.out_bias, decoder.mlp_bias

    assert biases() == (False, False, False)
    assert biases(attention_bias=True) == (True, True, False)
    assert biases(mlp_bias=True) == (False, False, True)
    assert biases(model_type="qwen2") == (True, False, False)
    assert biases(model_type="qwen3", attention_bias=True) == (True, True, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read_and_old_keys_mean_the_same(family, tmp_path):
    written = FAMILIES[family].to_dict()
    config = decoder_config(written, FILE)
    rope = dict(written.pop("rope_parameters"))
    written["rope_theta"] = rope.pop("rope_theta")
    written["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    assert decoder_config(written, FILE) == config
    assert [layer.rotary.theta for layer in config.attention.layers] == [written["rope_theta"]] * 4
    assert replace(config, norm_eps=1.0) != config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported; choose a model of llama, mistral"),
        ({"residual_multiplier": 0.22}, "attribute residual_multiplier = 0.22 is not supported"),
        ({"partial_rotary_factor": 0.5}, "attribute partial_rotary_factor = 0.5 is not supported"),
        ({"sliding_window": 128}, "attribute sliding_window = 128 is not supported for model_type 'llama'"),
        ({"quantization_config": {"bits": 4}}, "attribute quantization_config"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "attribute auto_map"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "rope type 'llama3' needs"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope type 'default' needs"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types must name"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 4}, "layer_types must name"),
        (
            {"model_type": "gemma2", "sliding_window": None, "layer_types": ["sliding_attention"] * 4},
            "no sliding_window",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message) as error:
        decoder_config({**LLAMA, **change}, FILE)
    assert "model/config.json: " in str(error.value)


def test_attributes_that_are_off_change_nothing():
    off = {"use_bidirectional_attention": None, "tie_encoder_decoder": False}
    assert decoder_config({**LLAMA, **off}, FILE) == decoder_config(LLAMA, FILE)


def test_every_family_has_a_model_that_is_held_against_transformers():
    assert {config.model_type for config in FAMILIES.values()} == set(BY_MODEL_TYPE)
