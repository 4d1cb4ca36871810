"""The header of a GGUF file: its metadata, and where each tensor lies. Tensors are dequantised a few rows at a time.

A large model may come in several files, NAME-00001-of-00003.gguf and so on; the first has the metadata and stands for
them all. Every count and length is compared with what is left of the file before it is believed.
"""

import math
import re
import struct
from dataclasses import dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained
from t2l_jax.schema import shown

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
_LENGTH = struct.Struct("<Q")
_LEAST_FIELD = 8 + 4 + 1  # bytes: the length of a name, a type, a value
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8  # the length of a name, how many dimensions, one of them, a type, an offset
_PLAIN_KINDS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
_FIRST_PART = re.compile(r"(.+)-00001-of-(?!00000)(\d{5})\.gguf", re.ASCII)


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

    def read(self, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        """Rows [start, stop) in float32, or some columns of them, which takes whole rows to read."""
        rows = self._read_rows(start, stop)
        return rows if columns is None else rows[:, columns.start : columns.stop]

    def _read_rows(self, start: int, stop: int) -> np.ndarray:
        if not self.heads:
            return self._stored_rows(start, stop)
        width = self.shape[0] // self.heads
        first, last = start // width * width, -(-stop // width) * width  # whole heads
        rows = halved(self._stored_rows(first, last), width)
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


def interleaved(rows: np.ndarray, width: int) -> np.ndarray:
    """Rows of heads of a width as llama.cpp stores them for some architectures.

    It rotates neighbouring rows (2j, 2j + 1) of a head where Hugging Face rotates rows (j, j + width/2).
    """
    return rows.reshape(-1, 2, width // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: np.ndarray, width: int) -> np.ndarray:
    """What was `interleaved` in Hugging Face's order."""
    return rows.reshape(-1, width // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_index(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """A model's metadata, arrays left out, and its tensors by name, those of all parts of a split file.

    `gguf.GGUFReader` takes seconds over the arrays. Raises UserError for a damaged file, a missing part, and a type of
    numbers that cannot be read.
    """
    fields, stored = _read_file(file)
    count = _part_number(fields, "split.count", file) or 1
    if number := _part_number(fields, "split.no", file):
        raise UserError(f"{file}: part {number + 1} of {count} of a model; give the first part")
    if count == 1:
        return fields, stored
    parts = split_parts(file)
    if len(parts) != count:
        raise UserError(f"{file}: the first of {count} parts; its name must end in -00001-of-{count:05d}.gguf")
    for number, part in enumerate(parts[1:], 1):
        if not part.is_file():
            raise UserError(f"{part}: this part of {file.name} is not there; download all {count} parts")
        theirs, more = _read_file(part)
        if (theirs.get("split.no"), theirs.get("split.count")) != (number, count):
            raise UserError(f"{part}: not part {number + 1} of {count} of {file.name}; download the parts again")
        if twice := stored.keys() & more.keys():
            raise UserError(f"{part}: tensor {min(twice)} is in another part, too; download the parts again")
        stored |= more
    if fields.get("split.tensors.count") not in (None, len(stored)):
        raise UserError(
            f"{file}: its parts hold {len(stored)} tensors, split.tensors.count says {fields['split.tensors.count']}; "
            "download the parts again"
        )
    return fields, stored


def split_parts(file: Path) -> list[Path]:
    """The paths of all parts of the model that a file is the first part of, by its name; else the file alone."""
    match = _FIRST_PART.fullmatch(file.name)
    if match is None:
        return [file]
    return [file.with_name(f"{match[1]}-{number:05d}-of-{match[2]}.gguf") for number in range(1, int(match[2]) + 1)]


def _part_number(fields: dict[str, Any], key: str, file: Path) -> int:
    number = fields.get(key, 0)
    if type(number) is not int or not 0 <= number < 100_000:
        raise UserError(f"{file}: key {key} is {shown(number)}, not the number of a part; download the file again")
    return number


def _read_file(file: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """`read_index` of one file."""
    try:
        with os_errors_explained(file, "read"), open_file(file) as stream:
            if not stream.read(1):
                raise _MalformedError("it is empty")
            with mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
                return _Header(data, file).read()
    except (struct.error, OverflowError, UnicodeDecodeError, _MalformedError) as error:
        raise UserError(f"{file}: not a whole GGUF file ({error}); download or copy it again") from error


class _MalformedError(Exception):
    """What is wrong with the header."""


class _Header:
    """Reads a file's header from front to back."""

    def __init__(self, data: mmap, file: Path) -> None:
        self._data, self._file, self._at = data, file, 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        magic, version = self._unpack("II")
        if magic != gguf.GGUF_MAGIC or version not in (2, 3):
            raise UserError(f"{self._file}: not a GGUF file of version 2 or 3; take another conversion of the model")
        num_tensors, num_fields = self._unpack("QQ")
        self._check_room(num_tensors, _LEAST_TENSOR, "tensors")
        self._check_room(num_fields, _LEAST_FIELD, "metadata fields")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key = self._text()
            if key in fields:
                raise _MalformedError(f"key {shown(key)} comes twice")
            fields[key] = self._value(key, *self._unpack("I"))
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**30 or alignment & (alignment - 1):
            raise _MalformedError(f"general.alignment is {shown(alignment)}, not a power of two")
        start = -(-self._at // alignment) * alignment
        return fields, self._placed(entries, start)

    def _placed(self, entries: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, GgufTensor]:
        """The tensors, whose data must lie in the file and not overlap."""
        stored: dict[str, GgufTensor] = {}
        end = 0
        for name, shape, number, offset in sorted(entries, key=lambda entry: entry[3]):
            if name in stored:
                raise _MalformedError(f"tensor {shown(name)} comes twice")
            kind = _readable_kind(number, f"{self._file}: tensor {shown(name)}")
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise _MalformedError(f"tensor {shown(name)} has rows of {shape[-1]}, no multiple of {block}")
            num_bytes = math.prod(shape) // block * block_bytes
            if start + offset + num_bytes > len(self._data):
                raise UserError(f"{self._file}: ends inside tensor {shown(name)}; download or copy the file again")
            if offset < end:
                raise _MalformedError(f"tensor {shown(name)} overlaps another")
            stored[name] = GgufTensor(name, self._file, shape, kind, start + offset, num_bytes)
            end = offset + num_bytes
        return {name: stored[name] for name, *_ in entries}

    def _value(self, key: str, kind: int) -> Any:
        """One metadata value. Arrays are skipped: they belong to the tokenizer."""
        if kind == _Kind.STRING:
            return self._text()
        if kind != _Kind.ARRAY:
            return self._unpack(self._layout(key, kind))[0]
        item, count = self._unpack("IQ")
        if item == _Kind.STRING:
            self._check_room(count, 8, f"texts in {shown(key)}")
            data, at, unpack = self._data, self._at, _LENGTH.unpack_from
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
            self._skip(at - self._at)
        else:
            self._skip(count * struct.calcsize(f"<{self._layout(key, item)}"))
        return None

    def _layout(self, key: str, kind: int) -> str:
        if kind == _Kind.ARRAY:
            raise _MalformedError(f"key {shown(key)} is an array of arrays, which no model needs")
        if kind not in _SCALARS:
            raise _MalformedError(f"key {shown(key)} has type {kind}, which is not known")
        return _SCALARS[_Kind(kind)]

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        (dimensions,) = self._unpack("I")
        if not 1 <= dimensions <= 4:
            raise _MalformedError(f"tensor {shown(name)} has {dimensions} dimensions, not 1 to 4")
        shape = self._unpack("Q" * dimensions)[::-1]
        if not all(shape):
            raise _MalformedError(f"tensor {shown(name)} is empty")
        kind, offset = self._unpack("IQ")
        return name, shape, kind, offset

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode()

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _skip(self, length: int) -> None:
        self._check_room(length, 1, "bytes")
        self._at += length

    def _check_room(self, count: int, least: int, what: str) -> None:
        if count * least > len(self._data) - self._at:
            raise _MalformedError(f"{count} {what} do not fit into it")


def _readable_kind(number: int, where: str) -> gguf.GGMLQuantizationType:
    """The type of a tensor's numbers. Raises UserError, starting with `where`, if they cannot be dequantised."""
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as error:
        raise UserError(f"{where} has type {number}, which is not known; take another conversion") from error
    if kind not in _PLAIN_KINDS and not _has_dequantiser(kind):
        raise UserError(f"{where} is {kind.name}, which cannot be read; take another conversion of the model")
    return kind


@cache
def _has_dequantiser(kind: gguf.GGMLQuantizationType) -> bool:
    try:
        gguf.quants.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True
