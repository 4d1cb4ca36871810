"""Reads llama.cpp's GGUF files: metadata as a Hugging Face config, tensors under their Hugging Face names.

Tensor names, row order and scaling are converted back to those of the original Hugging Face checkpoint.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import Llama3Scaling, rotary_frequencies
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_ARCHITECTURE, Family
from t2l_jax.io.families.config import decoder_config
from t2l_jax.io.families.family import TOP_NAMES, Gguf
from t2l_jax.io.gguf_header import GgufTensor, read_index

# GGUF key after the architecture's name -> config.json attribute, for every family.
_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_IGNORED_KEYS = {"context_length", "vocab_size", "rope.dimension_count", "attention.value_length"}
# Attribute without a key -> the tensor whose presence implies it.
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
_ROPE_FACTORS = "rope_freqs.weight"


def gguf_config(file: Path) -> tuple[Family, DecoderConfig]:
    """The family and decoder config from a GGUF file's metadata.

    Raises UserError that names an unsupported architecture, key or rotary scaling.
    """
    fields, stored = read_index(file)
    family, gguf_format = _find_family(fields, file)
    if "token_embd.weight" not in stored:
        raise UserError(f"{file}: has no tensor token_embd.weight; download or copy the file again")
    values: dict[str, Any] = {"model_type": family.model_type, "vocab_size": stored["token_embd.weight"].shape[0]}
    names = {**_KEYS, **gguf_format.keys}
    for key, value in fields.items():
        short = key.removeprefix(f"{gguf_format.architecture}.")
        if short == key or short in _IGNORED_KEYS:
            continue
        if short in names:
            values[names[short]] = value
        elif (short, value) != ("rope.scaling.type", "none"):
            raise UserError(f"{file}: key {key} = {value!r} is not supported; take another conversion of the model")
    values["tie_word_embeddings"] = "output.weight" not in stored
    values |= {name: tensor in stored for name, tensor in _BIASES.items() if name in family.attributes}
    values |= gguf_format.derive(values)
    config = decoder_config(values, file)
    if gguf_format.offset_in_norms:
        config = replace(config, norm_offset=0.0)
    return family, _with_rope_factors(config, stored.get(_ROPE_FACTORS))


def gguf_tensors(file: Path) -> Iterator[GgufTensor]:
    """The tensors of a GGUF file under their Hugging Face names."""
    fields, stored = read_index(file)
    family, gguf_format = _find_family(fields, file)
    heads: dict[str, int] = {}
    if gguf_format.interleaved:
        heads["attn_q"] = fields[f"{gguf_format.architecture}.attention.head_count"]
        heads["attn_k"] = fields.get(f"{gguf_format.architecture}.attention.head_count_kv", heads["attn_q"])
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


def _find_family(fields: dict[str, Any], file: Path) -> tuple[Family, Gguf]:
    architecture = fields.get("general.architecture")
    family = BY_ARCHITECTURE.get(architecture) if isinstance(architecture, str) else None
    if family is None or family.gguf is None:
        names = ", ".join(BY_ARCHITECTURE)
        raise UserError(f"{file}: architecture {architecture!r} is not supported; {names} are")
    return family, family.gguf


def _with_rope_factors(config: DecoderConfig, tensor: GgufTensor | None) -> DecoderConfig:
    """Llama 3.1's scaling comes as one divisor per frequency: accept those that its published numbers give."""
    if tensor is None:
        return config
    factors = tensor.read(0, tensor.shape[0])
    if np.all(factors == 1):
        return config
    scaling = Llama3Scaling(float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    layers = []
    for layer in config.attention.layers:
        scaled = replace(layer, rotary=layer.rotary and replace(layer.rotary, scaling=scaling))
        plain, slowed = (rotary_frequencies(each.rotary, config.attention.head_dim) for each in (layer, scaled))
        if layer.rotary and (factors.shape != plain.shape or not np.allclose(factors, plain / slowed, rtol=1e-4)):
            raise UserError(
                f"{tensor.file}: the factors in {_ROPE_FACTORS} are not Llama 3.1's, and no others are supported"
            )
        layers.append(scaled)
    return replace(config, attention=replace(config.attention, layers=tuple(layers)))
