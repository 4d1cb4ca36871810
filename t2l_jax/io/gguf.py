"""Reads llama.cpp's GGUF files: metadata as a Hugging Face config, tensors under their Hugging Face names.

Tensor names, row order and scaling are converted back to those of the original Hugging Face checkpoint.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import rotary_frequencies
from t2l_jax.decoder.rotary_scaling import Llama3Scaling
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_ARCHITECTURE, Family
from t2l_jax.io.families.config import decoder_config
from t2l_jax.io.families.family import TOP_NAMES, Gguf, Heads, with_attention, with_layers
from t2l_jax.io.gguf_header import GgufTensor, read_index
from t2l_jax.io.tensor import all_finite
from t2l_jax.schema import Schema, checked, shown

# GGUF key after the architecture's name -> config.json attribute, for every family.
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_ROPE_KEYS = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# What the absence of keys means to llama.cpp, where that is not what it means in a config.json.
_ABSENT: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": None,
    "rms_norm_eps": None,  # refused
    "rope_theta": 10_000.0,
}
_IGNORED_KEYS = {"vocab_size", "rope.scaling.finetuned", "rope.dimension_count", "attention.value_length"}
# Keys that change nothing while they have this value.
_NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
# Attribute without a key -> the tensor whose presence implies it.
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
_ROPE_FACTORS = "rope_freqs.weight"
_LONG_ROPE_FACTORS = "rope_factors_long.weight"


class _HeadCounts(Schema):
    """How many heads there are of queries and of keys."""

    head_count: Heads
    head_count_kv: Heads | None = None


def gguf_config(file: Path) -> tuple[Family, DecoderConfig]:
    """The family and decoder config from a GGUF file's metadata.

    Raises UserError that names an unsupported architecture, key, value or rotary scaling.
    """
    fields, stored = read_index(file)
    family = find_gguf_family(fields, file)
    gguf_format = family.gguf
    if "token_embd.weight" not in stored or len(stored["token_embd.weight"].shape) != 2:
        raise UserError(f"{file}: has no matrix token_embd.weight; download or copy the file again")
    if _LONG_ROPE_FACTORS in stored:
        raise UserError(f"{file}: rope type 'longrope' ({_LONG_ROPE_FACTORS}) is not supported; take another model")
    values = {
        **_ABSENT,
        **gguf_format.absent,
        **_attributes(fields, gguf_format, file),
        "model_type": family.model_type,
        "vocab_size": stored["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in stored,
    }
    values |= {name: tensor in stored for name, tensor in _BIASES.items() if name in family.config.model_fields}
    config = gguf_format.adapt(_with_head(decoder_config(values, file), fields, gguf_format, file))
    if gguf_format.offset_in_norms:
        config = replace(config, norm_offset=0.0)
    return family, _with_rope_factors(config, stored.get(_ROPE_FACTORS))


def _attributes(fields: Mapping[str, Any], gguf_format: Gguf, file: Path) -> dict[str, Any]:
    """The metadata of the architecture as attributes of a config.json."""
    names = {**_KEYS, **gguf_format.keys}
    values: dict[str, Any] = {}
    rope: dict[str, Any] = {}
    for key, value in fields.items():
        short = key.removeprefix(f"{gguf_format.architecture}.")
        if short == key or short in _IGNORED_KEYS:
            continue
        if not isinstance(value, int | float | str):
            raise UserError(f"{file}: key {key} is a list, one value a layer, which is not supported")
        if short == "attention.sliding_window" and value == 0:
            values[names.get(short, short)] = None  # no window
        elif short in names:
            values[names[short]] = value
        elif short in _ROPE_KEYS:
            rope[_ROPE_KEYS[short]] = value
        elif short not in _NEUTRAL or value != _NEUTRAL[short]:
            raise UserError(
                f"{file}: key {key} = {shown(value)} is not supported; take another conversion of the model"
            )
    if rope and rope.get("rope_type") != "none":
        values["rope_scaling"] = {"rope_type": "linear", **rope}
    return values


def _with_head(config: DecoderConfig, fields: Mapping[str, Any], gguf_format: Gguf, file: Path) -> DecoderConfig:
    """The decoder with as many channels rotated as the file says; values of another width than keys are refused."""
    key, head_dim = f"{gguf_format.architecture}.attention.value_length", config.attention.head_dim
    if fields.get(key, head_dim) != head_dim:
        raise UserError(f"{file}: key {key} = {shown(fields[key])} is not supported: keys have a width of {head_dim}")
    key = f"{gguf_format.architecture}.rope.dimension_count"
    width = fields.get(key, head_dim)
    if width == head_dim:
        return config
    if not (gguf_format.partial_rotary and isinstance(width, int) and width in range(2, head_dim, 2)):
        raise UserError(f"{file}: key {key} = {shown(width)} is not supported: heads have a width of {head_dim}")
    return with_attention(config, rotary_width=width)


def gguf_tensors(file: Path) -> Iterator[GgufTensor]:
    """The tensors of a GGUF file under their Hugging Face names."""
    fields, stored = read_index(file)
    family = find_gguf_family(fields, file)
    gguf_format = family.gguf
    heads: dict[str, int] = {}
    if gguf_format.interleaved:
        prefix = f"{gguf_format.architecture}.attention."
        own = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
        counts = checked(_HeadCounts, own, f"{file}: {prefix}*")
        heads = {"attn_q": counts.head_count, "attn_k": counts.head_count_kv or counts.head_count}
    for name, tensor in stored.items():
        if name != _ROPE_FACTORS:  # those are part of the config
            module = name.rpartition(".")[0].rpartition(".")[2]
            yield replace(tensor, name=hugging_face_name(name, family), heads=heads.get(module, 0))


def hugging_face_name(name: str, family: Family) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not known is returned as it is."""
    match name.split("."):
        case [module, kind]:
            top = {other.gguf: other.hugging_face for other in TOP_NAMES.values()}
            return f"{top[module]}.{kind}" if module in top else name
        case ["blk", layer, module, kind]:
            modules = {other.gguf: other.hugging_face for other in family.names.values()}
            return f"model.layers.{layer}.{modules[module]}.{kind}" if module in modules else name
    return name


def find_gguf_family(fields: dict[str, Any], file: Path) -> Family:
    """The family of a GGUF file's architecture. Raises UserError if it is not supported."""
    architecture = fields.get("general.architecture")
    family = BY_ARCHITECTURE.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        names = ", ".join(BY_ARCHITECTURE)
        raise UserError(f"{file}: architecture {shown(architecture)} is not supported; {names} are")
    return family


def _with_rope_factors(config: DecoderConfig, tensor: GgufTensor | None) -> DecoderConfig:
    """Llama 3.1's scaling comes as one divisor per frequency: accept those that its published numbers give."""
    if tensor is None:
        return config
    if len(tensor.shape) != 1 or not all_finite(factors := tensor.read(0, tensor.shape[0])):
        raise UserError(f"{tensor.file}: {_ROPE_FACTORS} must be a list of finite numbers")
    if np.all(factors == 1):
        return config
    scaling = Llama3Scaling(float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    scaled = {
        layer.rotary: layer.rotary and replace(layer.rotary, scaling=scaling) for layer in config.attention.layers
    }
    for before, after in scaled.items():
        plain, slowed = (rotary_frequencies(rotary, config.attention.head_dim) for rotary in (before, after))
        if before and (factors.shape != plain.shape or not np.allclose(factors, plain / slowed, rtol=1e-4)):
            raise UserError(
                f"{tensor.file}: the factors in {_ROPE_FACTORS} are not Llama 3.1's, and no others are supported"
            )
    return with_layers(config, rotary=[scaled[layer.rotary] for layer in config.attention.layers])
