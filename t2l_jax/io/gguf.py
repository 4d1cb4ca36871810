"""GGUF files of llama.cpp: metadata as a Hugging Face config, tensors dequantised a few rows at a time.

Names, order of rows and scaling are turned back into those of the Hugging Face checkpoint that the file was made from.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import Llama3Scaling, rope_frequencies
from t2l_jax.errors import UserError
from t2l_jax.io.hf_config import decoder_config
from t2l_jax.lora import PROJECTIONS

# GGUF key after the architecture's name -> config.json attribute.
_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_IGNORED_KEYS = {"context_length", "vocab_size", "rope.dimension_count", "attention.value_length"}
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    **{projection.gguf: f"{projection.block}.{projection.name}" for projection in PROJECTIONS.values()},
}
_GEMMA2_MODULES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_Kind = gguf.GGUFValueType
_SCALARS = {
    _Kind.UINT8: "B",
    _Kind.INT8: "b",
    _Kind.UINT16: "H",
    _Kind.INT16: "h",
    _Kind.UINT32: "I",
    _Kind.INT32: "i",
    _Kind.UINT64: "Q",
    _Kind.INT64: "q",
    _Kind.FLOAT32: "f",
    _Kind.FLOAT64: "d",
    _Kind.BOOL: "?",
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file. `heads` is above zero where the rows of each head are stored interleaved."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int
    heads: int = 0
    flipped: bool = False

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in float32."""
        if not self.heads:
            return self._stored_rows(start, stop)
        # llama.cpp rotates neighbouring rows (2j, 2j + 1) of a head where Hugging Face rotates rows (j, j + h/2).
        width = self.shape[0] // self.heads
        first, last = start // width * width, -(-stop // width) * width  # whole heads
        rows = self._stored_rows(first, last)
        rows = rows.reshape(-1, width // 2, 2, *self.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return rows[start - first : stop - first]

    def _stored_rows(self, start: int, stop: int) -> np.ndarray:
        row = self.num_bytes // self.shape[0]
        with self.file.open("rb") as file:
            file.seek(self.offset + start * row)
            data = file.read((stop - start) * row)
        if len(data) != (stop - start) * row:
            raise UserError(f"{self.file}: ends inside tensor {self.name}; download or copy the file again")
        block = np.frombuffer(data, np.uint8).reshape(stop - start, row)
        return gguf.quants.dequantize(block, self.kind).reshape(stop - start, *self.shape[1:])


def gguf_config(file: Path) -> DecoderConfig:
    """The decoder that a GGUF file's metadata describes.

    Raises UserError for an architecture, a key or a rotary scaling that is not supported, by name.
    """
    fields, found = _read_index(file)
    arch = _architecture(fields, file)
    if "token_embd.weight" not in found:
        raise UserError(f"{file}: has no tensor token_embd.weight; download or copy the file again")
    values: dict[str, Any] = {"model_type": arch, "vocab_size": found["token_embd.weight"].shape[0]}
    for key, value in fields.items():
        short = key.removeprefix(f"{arch}.")
        if short == key or short in _IGNORED_KEYS:
            continue
        if short in _KEYS:
            values[_KEYS[short]] = value
        elif (short, value) != ("rope.scaling.type", "none"):
            raise UserError(f"{file}: key {key} = {value!r} is not supported; take another conversion of the model")
    values["tie_word_embeddings"] = "output.weight" not in found
    if arch == "llama":
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in found
    if arch != "qwen2":
        values["attention_bias"] = "blk.0.attn_q.bias" in found
    if arch == "gemma2":
        # llama.cpp knows the one exception, the 27B model of 46 layers, by its depth; the file does not say it.
        head_dim = values["hidden_size"] // values["num_attention_heads"]
        values["query_pre_attn_scalar"] = head_dim if values["num_hidden_layers"] == 46 else values["head_dim"]
    config = decoder_config(values, file)
    if arch == "gemma2":
        config = replace(config, norm_offset=0.0)  # llama.cpp stores the norms' scales with the one added
    return _with_rope_factors(config, found.get(_ROPE_FACTORS))


def gguf_tensors(file: Path) -> Iterator[GgufTensor]:
    """The tensors of a GGUF file under their Hugging Face names."""
    fields, found = _read_index(file)
    arch = _architecture(fields, file)
    heads: dict[str, int] = {}
    if arch == "llama":
        heads["attn_q"] = fields["llama.attention.head_count"]
        heads["attn_k"] = fields.get("llama.attention.head_count_kv", heads["attn_q"])
    for name, tensor in found.items():
        if name != _ROPE_FACTORS:  # those are part of the config
            module = name.rpartition(".")[0].rpartition(".")[2]
            yield replace(tensor, name=hugging_face_name(name, arch), heads=heads.get(module, 0))


def hugging_face_name(name: str, arch: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name that is not known is returned as it is."""
    match name.split("."):
        case [module, kind] if module in _TOP:
            return f"{_TOP[module]}.{kind}"
        case ["blk", layer, module, kind]:
            modules = {**_MODULES, **_GEMMA2_MODULES} if arch == "gemma2" else _MODULES
            return f"model.layers.{layer}.{modules[module]}.{kind}" if module in modules else name
    return name


def _architecture(fields: dict[str, Any], file: Path) -> str:
    arch = fields.get("general.architecture")
    if arch not in _ARCHITECTURES:
        raise UserError(f"{file}: architecture {arch!r} is not supported; {', '.join(_ARCHITECTURES)} are")
    return arch


def _read_index(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """A file's metadata, arrays left out, and its tensors by name. `gguf.GGUFReader` takes seconds over the arrays."""
    try:
        with file.open("rb") as stream:
            magic, version, num_tensors, num_fields = _unpack(stream, "IIQQ")
            if magic != gguf.GGUF_MAGIC or version not in (2, 3):
                raise UserError(f"{file}: not a GGUF file of version 2 or 3; take another conversion of the model")
            fields = {}
            for _ in range(num_fields):
                key = _read_value(stream, _Kind.STRING)
                fields[key] = _read_value(stream, *_unpack(stream, "I"))
            entries = [_read_tensor_entry(stream) for _ in range(num_tensors)]
            alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
            start = -(-stream.tell() // alignment) * alignment
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"{file}: not a whole GGUF file ({error}); download or copy it again") from error
    found = {}
    for name, shape, kind, offset in entries:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        num_bytes = math.prod(shape) // block * block_bytes
        found[name] = GgufTensor(name, file, shape, kind, start + offset, num_bytes)
    return fields, found


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", stream.read(struct.calcsize(f"<{layout}")))


def _read_value(stream: BinaryIO, kind: int) -> Any:
    """One metadata value. Arrays are skipped: they belong to the tokenizer."""
    if kind == _Kind.STRING:
        return stream.read(*_unpack(stream, "Q")).decode()
    if kind != _Kind.ARRAY:
        return _unpack(stream, _SCALARS[_Kind(kind)])[0]
    item, count = _unpack(stream, "IQ")
    if item != _Kind.STRING:
        stream.seek(count * struct.calcsize(f"<{_SCALARS[_Kind(item)]}"), os.SEEK_CUR)
        return None
    for _ in range(count):
        stream.seek(_unpack(stream, "Q")[0], os.SEEK_CUR)
    return None


def _read_tensor_entry(stream: BinaryIO) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
    name = _read_value(stream, _Kind.STRING)
    shape = _unpack(stream, "Q" * _unpack(stream, "I")[0])[::-1]
    kind, offset = _unpack(stream, "IQ")
    return name, shape, gguf.GGMLQuantizationType(kind), offset


def _with_rope_factors(config: DecoderConfig, tensor: GgufTensor | None) -> DecoderConfig:
    """Llama 3.1's scaling comes as one divisor per frequency: accept those that its published numbers give."""
    if tensor is None:
        return config
    factors = tensor.read(0, tensor.shape[0])
    if np.all(factors == 1):
        return config
    scaling = Llama3Scaling(float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    scaled = replace(config, attention=replace(config.attention, rope_scaling=scaling))
    ratio = rope_frequencies(config.attention) / rope_frequencies(scaled.attention)
    if factors.shape != ratio.shape or not np.allclose(factors, ratio, rtol=1e-4):
        raise UserError(
            f"{tensor.file}: the factors in {_ROPE_FACTORS} are not Llama 3.1's, and no others are supported"
        )
    return scaled
