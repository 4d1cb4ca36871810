"""Rotary positions of a config against transformers' own, as frequencies; what it does not compute is refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from t2l_jax.decoder.attention import rotary_frequencies
from t2l_jax.errors import UserError
from t2l_jax.io.families.config import decoder_config

FILE = Path("config.json")
SIZES = {
    "vocab_size": 16,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0}

RIGHT = {
    "nothing": {},
    "theta": {"rope_theta": 500.0},
    "theta inside wins": {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "scaling wins": {
        "rope_theta": 500.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16},
    },
    "empty scaling": {"rope_parameters": {**LINEAR, "rope_theta": 300.0}, "rope_scaling": {}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2}},
    "llama 3 without its length": {"rope_scaling": LLAMA3},
    "length outside wins": {"rope_scaling": YARN, "original_max_position_embeddings": 32},
    "yarn": {"rope_parameters": YARN},
    "yarn without its length": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, betas": {"rope_parameters": {**YARN, "beta_fast": 8, "beta_slow": 2.5}},
    "yarn, null betas": {"rope_parameters": {**YARN, "beta_fast": None, "beta_slow": None}},
    "yarn, not truncated": {"rope_parameters": {**YARN, "truncate": False}},
    "yarn, attention factor": {
        "rope_parameters": {**YARN, "attention_factor": 0.7, "mscale": 1.0, "mscale_all_dim": 2}
    },
    "yarn, mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn, half of mscale": {"rope_parameters": {**YARN, "mscale": 0.7}},
    "yarn that shrinks": {"rope_parameters": {**YARN, "factor": 0.5}},
    "phi 3, part": {"model_type": "phi3", "partial_rotary_factor": 0.75},
    "phi 3, part inside wins": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
    },
    "gemma 3": {"model_type": "gemma3_text"},
    "gemma 3, older": {
        "model_type": "gemma3_text",
        "rope_theta": 500.0,
        "rope_local_base_freq": 300.0,
        "rope_scaling": LINEAR,
        "sliding_window_pattern": 3,
    },
    "gemma 3, newer": {
        "model_type": "gemma3_text",
        "rope_theta": 500.0,
        "original_max_position_embeddings": 16,
        "rope_parameters": {"full_attention": {**YARN, "rope_theta": 700.0}, "sliding_attention": LLAMA3},
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_frequencies_are_those_of_transformers(name):
    config = {"model_type": "llama", **SIZES, **RIGHT[name]}
    attention = decoder_config(config, FILE).attention
    reference = transformers.AutoConfig.for_model(**copy.deepcopy(config))
    if config["model_type"] == "gemma3_text":
        module = Gemma3RotaryEmbedding(reference)
        expected = [
            (getattr(module, f"{kind}_inv_freq"), getattr(module, f"{kind}_attention_scaling"))
            for kind in reference.layer_types
        ]
    else:
        module = (Phi3RotaryEmbedding if config["model_type"] == "phi3" else LlamaRotaryEmbedding)(reference)
        expected = [(module.inv_freq, module.attention_scaling)] * len(attention.layers)
    for layer, (frequencies, magnitude) in zip(attention.layers, expected, strict=True):
        ours = rotary_frequencies(layer.rotary, attention.rotary_width or attention.head_dim)
        np.testing.assert_allclose(ours, frequencies, rtol=1e-5)
        assert (layer.rotary.scaling.magnitude if layer.rotary.scaling else 1.0) == pytest.approx(magnitude)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported: its frequencies"),
        ({"rope_scaling": {"type": "mrope"}}, "rope type 'mrope' is not supported; default, linear, llama3, yarn"),
        ({"rope_scaling": {"factor": 2.0}}, "rope type 'default' does not read factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs high_freq_factor, low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor must be below its high_freq_factor"),
        ({"rope_scaling": LLAMA3, "max_position_embeddings": None}, "needs original_max_position_embeddings"),
        ({"rope_scaling": {**LINEAR, "type": "yarn"}}, "its rope_type is 'linear', its type 'yarn'"),
        ({"rope_scaling": {**LINEAR, "factor": "4"}}, "field rope_scaling.factor: must be a valid number, got '4'"),
        ({"rope_scaling": {**YARN, "truncate": None}}, "field rope_scaling.truncate: must be a valid boolean"),
        ({"rope_scaling": {**LINEAR, "rope_theta": None}}, "rope_theta is null"),
        ({"rope_scaling": {**LINEAR, "low_freq_factor": 1.0}}, "rope type 'linear' does not read low_freq_factor"),
        ({"rope_theta": None}, "rope_theta is null"),
        ({"rope_theta": float("nan")}, "field rope_theta: must be a finite number"),
        ({"rope_theta": 1}, "field rope_theta: must be greater than 1"),
        ({"rope_parameters": 7}, "field rope_parameters: must be an object of fields, got 7"),
        ({"rope_parameters": [1]}, "field rope_parameters"),
        ({"rope_parameters": "x"}, "field rope_parameters"),
        (
            {"rope_parameters": {"full_attention": LINEAR}},
            "attribute rope_parameters.full_attention = .* not supported",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.2}, "rotates 3 of 16 channels"),
        ({"model_type": "phi3", "rope_scaling": LINEAR}, "a rope type other than 'default' is not supported"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su"}}, "rope type 'su' is not supported"),
        ({"model_type": "gemma3_text", "rope_parameters": LINEAR}, "attribute rope_parameters.rope_type = 'linear'"),
        ({"model_type": "gemma3_text", "rope_scaling": {**YARN, "truncate": False}}, "truncate = false"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"sliding_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            },
            "partial_rotary_factor below 1",
        ),
        ({"model_type": "gemma3_text", "rope_scaling": {"type": "linear", "factor": 2.0}}, "is 'default', its type"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        decoder_config({"model_type": "llama", **SIZES, **change}, FILE)
    assert str(error.value).startswith("config.json: ")


def test_a_key_that_transformers_does_not_read_is_ignored_with_a_warning():
    config = {"model_type": "llama", **SIZES, "rope_scaling": YARN}
    with pytest.warns(UserWarning, match=r"config\.json: ignored, as transformers does: rope_scaling\.finetuned$"):
        decoder = decoder_config({**config, "rope_scaling": {**YARN, "finetuned": True}}, FILE)
    assert decoder == decoder_config(config, FILE)
