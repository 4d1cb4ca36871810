"""The header of a GGUF file: its metadata, and where each tensor lies. Tensors are dequantised a few rows at a time."""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from t2l_jax.errors import UserError

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


def read_index(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
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
