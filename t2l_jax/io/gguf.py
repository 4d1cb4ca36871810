"""Reads llama.cpp's GGUF files: metadata as a Hugging Face config, tensors dequantised a few rows at a time.

Tensor names, row order and scaling are converted back to those of the original Hugging Face checkpoint.
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
from t2l_jax.decoder.attention import Llama3Scaling, rotary_frequencies
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_ARCHITECTURE, Family
from t2l_jax.io.families.config import decoder_config
from t2l_jax.io.families.family import TOP_NAMES, Gguf

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
    """A tensor of a GGUF file. `heads` is above zero if the rows of each head are stored interleaved."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int
    heads: int = 0
    transposed: bool = False

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


def gguf_config(file: Path) -> tuple[Family, DecoderConfig]:
    """The family and decoder config from a GGUF file's metadata.

    Raises UserError that names an unsupported architecture, key or rotary scaling.
    """
    fields, stored = _read_index(file)
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
    fields, stored = _read_index(file)
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
    stored = {}
    for name, shape, kind, offset in entries:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        num_bytes = math.prod(shape) // block * block_bytes
        stored[name] = GgufTensor(name, file, shape, kind, start + offset, num_bytes)
    return fields, stored


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
