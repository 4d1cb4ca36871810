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
    """SmolLM2's, Gemma 2's and Phi-3's own config.json, and what older ones and unsloth's hold."""
    smollm2 = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {}}}
    phi3 = {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    generation = {"max_length": 4096, "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    others = {"tokenizer_class": "LlamaTokenizer", "unsloth_fixed": True, "sliding_window_size": 64}
    for harmless in (smollm2, phi3, generation, others):
        assert decoder_config({**LLAMA, **harmless}, FILE) == decoder_config(LLAMA, FILE)


def test_what_transformers_does_not_read_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match=r"config\.json: ignored, as transformers does: residual_multiplier, made_up$"):
        decoder = decoder_config({**LLAMA, "residual_multiplier": 0.22, "made_up": {"a": [1]}}, FILE)
    assert decoder == decoder_config(LLAMA, FILE)
    many = {f"made_up_{i}": i + 1 for i in range(100)}
    with pytest.warns(UserWarning, match="made_up_4 and 95 more$"):
        decoder_config({**LLAMA, **many}, FILE)


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
    assert windows(model_type="gemma3_text", sliding_window=7, sliding_window_pattern=3) == (7, 7, None, 7)
    assert windows(model_type="phi3", sliding_window=7) == (7, 7, 7, 7)
    assert windows(model_type="phi3") == (None,) * 4
    assert windows(model_type="smollm3", sliding_window=7) == (None,) * 4
    assert windows(model_type="smollm3", sliding_window=7, use_sliding_window=True) == (None, None, None, 7)
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


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma 3"])
def test_what_transformers_writes_is_read_and_old_keys_mean_the_same(family):
    written = FAMILIES[family].to_dict()
    config = decoder_config(written, FILE)
    rope = dict(written.pop("rope_parameters"))
    written["rope_theta"] = rope.pop("rope_theta")
    written["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    written["partial_rotary_factor"] = rope.pop("partial_rotary_factor", None)
    assert decoder_config(written, FILE) == config
    assert {layer.rotary.theta for layer in config.attention.layers if layer.rotary} == {written["rope_theta"]}
    assert replace(config, norm_eps=1.0) != config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported; choose a model of llama, mistral"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported; .*gemma3_text"),
        ({"model_type": ["llama"]}, "model_type .* is not supported"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"] * 4},
            "attribute layer_types = .* is not supported",
        ),
        ({"sliding_window": 128}, "attribute sliding_window = 128 is not supported for model_type 'llama'"),
        ({"attention_chunk_size": 8}, "attribute attention_chunk_size = 8 is not supported"),
        ({"per_layer_config": {"1": {}}}, "attribute per_layer_config = .* is not supported"),
        ({"quantization_config": {"bits": 4}}, "attribute quantization_config"),
        ({"is_causal": False}, "attribute is_causal = False is not supported"),
        ({"is_causal": None}, "attribute is_causal = None is not supported"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "attribute use_bidirectional_attention"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 5.0}, "field attn_logit_softcapping"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"hidden_act": ["silu"]}, "field hidden_act: must be a valid string"),
        ({"hidden_size": None}, "field hidden_size: must be a valid integer, got None"),
        ({"vocab_size": "100"}, "field vocab_size: must be a valid integer, got '100'"),
        ({"num_hidden_layers": 4.0}, "field num_hidden_layers"),
        ({"num_hidden_layers": -0.0}, "field num_hidden_layers"),
        ({"num_hidden_layers": 2_000_000}, "field num_hidden_layers: must be at most 4096"),
        ({"hidden_size": 2**40}, "field hidden_size"),
        ({"intermediate_size": 0}, "field intermediate_size"),
        ({"num_attention_heads": 0}, "field num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide num_attention_heads = 4"),
        ({"num_key_value_heads": True}, "field num_key_value_heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size = 64 is not an even head width times"),
        ({"head_dim": 15}, "field head_dim: must be a multiple of 2"),
        ({"rms_norm_eps": None}, "field rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "field rms_norm_eps: must be a finite number"),
        ({"rms_norm_eps": "1e-5"}, "field rms_norm_eps"),
        ({"tie_word_embeddings": "false"}, "field tie_word_embeddings: must be a valid boolean"),
        ({"tie_word_embeddings": 0}, "field tie_word_embeddings: must be a valid boolean"),
        ({"attention_bias": "no"}, "field attention_bias: must be a valid boolean"),
        ({"model_type": "gemma2", "hidden_activation": None}, "field hidden_activation"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "field query_pre_attn_scalar"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types names 1 layers of 4"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 4}, "field layer_types.0: must be 'sliding_"),
        (
            {"model_type": "gemma2", "sliding_window": None, "layer_types": ["sliding_attention"] * 4},
            "no sliding_window",
        ),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is a list of 2 layers of 4"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2, 1, 1]}, "field no_rope_layers.1"),
        ({"model_type": "granite", "logits_scaling": 0}, "field logits_scaling: must be above 0"),
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
