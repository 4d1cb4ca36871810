"""GGUF files of every architecture against the models they were made from; unknown metadata is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import IN_GGUF, convert, write_gguf
from tiny_models import LENGTH, random_tokens, save_tiny, torch_logits

from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.attention import Rotary
from t2l_jax.decoder.rotary_scaling import LinearScaling, Llama3Scaling
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base, load_config
from t2l_jax.io.locations import resolve


@pytest.mark.parametrize("family", [name for name in IN_GGUF if name != "llama 2"])
def test_logits_from_gguf(family, tmp_path):
    model = save_tiny(family, tmp_path, **IN_GGUF[family])
    convert(model, tmp_path / "model.gguf")
    tokens = random_tokens(2, LENGTH)
    config, params = load_base(resolve(tmp_path / "model.gguf"))
    hidden, _ = jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray(tokens.numpy()))
    np.testing.assert_allclose(logits(config, params, hidden), torch_logits(model, tokens), rtol=0, atol=1e-3)


def llama3_factors(factor: float) -> np.ndarray:
    """What llama.cpp's converter writes for llama 3.1's scaling with a base of 500,000 and heads of 128."""
    factors = []
    for exponent in range(0, 128, 2):
        wavelength = 2 * math.pi * 500_000.0 ** (exponent / 128)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


def write_headless_gguf(file, *, fields=None, **arrays):
    """As much of a Llama as a config is made from, with other fields."""
    known = {
        "block_count": 1,
        "embedding_length": 256,
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500_000.0,
    }
    arrays = {"token_embd.weight": np.ones((3, 256), np.float32), **arrays}
    write_gguf(file, arrays, "llama", **known | (fields or {}))


def rotary_of(file):
    (layer,) = load_config(resolve(file)).attention.layers
    return layer.rotary


def test_gguf_rope_factors_are_llama3_scaling_or_refused(tmp_path):
    file = tmp_path / "model.gguf"
    for factor in (8.0, 32.0):
        write_headless_gguf(file, **{"rope_freqs.weight": llama3_factors(factor)})
        assert rotary_of(file) == Rotary(500_000.0, Llama3Scaling(factor, 1.0, 4.0, 8192))
    write_headless_gguf(file, **{"rope_freqs.weight": np.ones(64, np.float32)})
    assert rotary_of(file) == Rotary(500_000.0)
    write_headless_gguf(file, **{"rope_freqs.weight": np.linspace(1, 8, 64, dtype=np.float32)})
    with pytest.raises(UserError, match=r"the factors in rope_freqs\.weight are not Llama 3\.1's"):
        load_config(resolve(file))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_count": 8}, r"key llama\.expert_count = 8 is not supported"),
        ({"attention.value_length": 64}, r"key llama\.attention\.value_length = 64 .* keys have a width of 128"),
        ({"rope.dimension_count": 64}, r"key llama\.rope\.dimension_count = 64 .* heads have a width of 128"),
        ({"attention.head_count": 0}, "field num_attention_heads"),
        ({"attention.head_count_kv": 1.0}, "field num_key_value_heads: must be a valid integer, got 1.0"),
        ({"feed_forward_length": 0}, "field intermediate_size"),
        ({"block_count": 1_000_000}, "field num_hidden_layers: must be less than or equal to 4096"),
        ({"attention.layer_norm_rms_epsilon": math.inf}, "field rms_norm_eps"),
        ({"attention.sliding_window": 8}, r"key llama\.attention\.sliding_window = 8 is not supported"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "rope type 'longrope' is not supported"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "needs original_max_position_embeddings"),
        ({"rope.scaling.attn_factor": 1.2}, r"key llama\.rope\.scaling\.attn_factor = 1.2"),
        ({"rope.scaling.type": "linear"}, "rope type 'linear' needs factor"),
    ],
)
def test_gguf_metadata_that_is_not_understood_is_refused_by_name(fields, message, tmp_path):
    write_headless_gguf(tmp_path / "a.gguf", fields=fields)
    with pytest.raises(UserError, match=message) as error:
        load_config(resolve(tmp_path / "a.gguf"))
    assert "a.gguf: " in str(error.value)


def test_gguf_metadata_that_changes_nothing(tmp_path):
    write_headless_gguf(tmp_path / "a.gguf")
    plain = load_config(resolve(tmp_path / "a.gguf"))
    neutral = {"expert_count": 0, "rope.scaling.type": "none", "rope.scaling.factor": 4.0, "rope.dimension_count": 128}
    write_headless_gguf(tmp_path / "a.gguf", fields=neutral)
    assert load_config(resolve(tmp_path / "a.gguf")) == plain
    write_headless_gguf(tmp_path / "a.gguf", fields={"rope.scaling.factor": 4.0})  # linear, as llama.cpp has it
    assert rotary_of(tmp_path / "a.gguf") == Rotary(500_000.0, LinearScaling(4.0))


def test_gguf_long_rope_is_refused_by_name(tmp_path):
    write_headless_gguf(tmp_path / "a.gguf", **{"rope_factors_long.weight": np.ones(64, np.float32)})
    with pytest.raises(UserError, match="rope type 'longrope'"):
        load_config(resolve(tmp_path / "a.gguf"))
