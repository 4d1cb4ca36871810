"""Model files as streams of tensors that are read a few rows at a time: safetensors, Flax msgpack, GGUF.

Opening a file reads only its index. Rows (slices of the first axis) are read on demand, by plain reads rather than a
memory map, so that nothing stays in memory. All formats use the tensor names of a Hugging Face PyTorch checkpoint.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import jax.numpy as jnp
import msgpack
import numpy as np

from t2l_jax.errors import UserError
from t2l_jax.io.files import read_json
from t2l_jax.io.gguf import gguf_tensors

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "flax_model.msgpack.index.json",
    "flax_model.msgpack",
)
_SAFETENSORS_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_FLAX_DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
_MSGPACK_MAPS = {*range(0x80, 0x90), 0xDE, 0xDF}
_MSGPACK_EXTS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_MSGPACK_BINS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_MALFORMED = (
    msgpack.UnpackException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
    struct.error,
)


class Tensor(Protocol):
    """A tensor in a file. `transposed`: its axes are [in, out], the reverse of a PyTorch checkpoint's."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def transposed(self) -> bool: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop). Raises UserError if the file is truncated."""
        ...


@dataclass(frozen=True)
class PlainTensor:
    """A tensor stored uncompressed in a file, in one or several pieces (offset, number of bytes)."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: Any
    pieces: tuple[tuple[int, int], ...]
    transposed: bool = False

    def read(self, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *self.shape[1:])
        row = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        out = np.empty(shape, self.dtype)
        into = out.reshape(-1).view(np.uint8).data
        begin, filled = start * row, 0
        with self.file.open("rb") as file:
            for offset, size in self.pieces:
                if begin < size and filled < len(into):
                    part = into[filled : filled + size - begin]
                    file.seek(offset + begin)
                    if file.readinto(part) != len(part):
                        raise UserError(f"{self.file}: ends inside tensor {self.name}; download or copy the file again")
                    filled += len(part)
                begin = max(begin - size, 0)
        return out


def weight_files(path: Path) -> list[Path]:
    """The files of a model's weights, in reading order. `path` is a folder or a .gguf file.

    Raises UserError if there are none, or if an index names a missing file.
    """
    if path.is_file():
        return [path]
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return _shards(path / name) if name.endswith(".index.json") else [path / name]
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise UserError(f"{path}: holds {len(ggufs)} GGUF files; name one of them: {', '.join(p.name for p in ggufs)}")
    raise UserError(f"{path}: no weights found; expected one of {', '.join(WEIGHT_FILES)}, or a .gguf file")


def tensors(path: Path) -> Iterator[Tensor]:
    """The tensors of a model, file by file. `path` is a folder or a .gguf file."""
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            yield from safetensors_tensors(file)
        elif file.suffix == ".msgpack":
            yield from flax_tensors(file)
        else:
            yield from gguf_tensors(file)


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; download the index again")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise UserError(f"{file}: named by {index.name} but not there; download the model again")
    return files


def safetensors_tensors(file: Path) -> Iterator[PlainTensor]:
    """The tensors of one safetensors file: eight bytes of length, a JSON header, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{file}: not a whole safetensors file; download or copy it again")
        try:
            header = json.loads(stream.read(length))
            entries = [(name, header[name]) for name in header if name != "__metadata__"]
            index = [
                (name, entry["dtype"], tuple(entry["shape"]), *map(int, entry["data_offsets"]))
                for name, entry in entries
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: its safetensors header is malformed; download or copy it again") from error
    for name, dtype, shape, begin, end in sorted(index, key=lambda entry: entry[3]):
        if dtype not in _SAFETENSORS_DTYPES:
            raise UserError(f"{file}: tensor {name} is {dtype}; only {', '.join(_SAFETENSORS_DTYPES)} can be read")
        kind = np.dtype(_SAFETENSORS_DTYPES[dtype])
        if 8 + length + end > size or end - begin != math.prod(shape) * kind.itemsize:
            raise UserError(f"{file}: ends inside tensor {name}; download or copy the file again")
        yield PlainTensor(name, file, shape, kind, ((8 + length + begin, end - begin),))


def flax_tensors(file: Path) -> Iterator[PlainTensor]:
    """The arrays of one Flax msgpack file, as `flax.serialization.to_bytes` writes a tree of parameters."""
    try:
        with file.open("rb") as stream:
            tree = _read_entry(stream)
        entries = list(_flatten(tree, ()))
    except _MALFORMED as error:
        raise UserError(f"{file}: not a whole Flax msgpack file; download or copy it again") from error
    size = file.stat().st_size
    for path, shape, dtype, pieces in entries:
        name = ".".join(path)
        if dtype not in _FLAX_DTYPES:
            raise UserError(f"{file}: array {name} is {dtype}; only {', '.join(_FLAX_DTYPES)} can be read")
        kind = np.dtype(_FLAX_DTYPES[dtype])
        in_file = all(offset + length <= size for offset, length in pieces)
        if not in_file or sum(length for _, length in pieces) != math.prod(shape) * kind.itemsize:
            raise UserError(f"{file}: ends inside array {name}; download or copy the file again")
        # Flax calls a matrix `kernel` and keeps it [in, out]; it calls an embedding `embedding`.
        last = "weight" if path[-1] in ("kernel", "embedding") else path[-1]
        yield PlainTensor(".".join([*path[:-1], last]), file, shape, kind, pieces, transposed=path[-1] == "kernel")


def _read_entry(stream: BinaryIO) -> Any:
    """A map as a dict, an array as (shape, dtype, pieces) without its bytes, anything else as it is."""
    first = stream.read(1)
    stream.seek(-len(first), os.SEEK_CUR)
    if first[0] in _MSGPACK_MAPS:
        (count,) = _unpack_next(stream, "read_map_header")
        return {_unpack_next(stream, "unpack")[0]: _read_entry(stream) for _ in range(count)}
    if first[0] not in _MSGPACK_EXTS:
        return _unpack_next(stream, "unpack")[0]
    _read_length(stream, _MSGPACK_EXTS)
    if stream.read(1) != b"\x01":
        raise ValueError("an extension that is not an array")
    _, shape, dtype = _unpack_next(stream, "read_array_header", "unpack", "unpack")
    length = _read_length(stream, _MSGPACK_BINS)
    piece = stream.tell(), length
    stream.seek(length, os.SEEK_CUR)
    return tuple(shape), dtype, (piece,)


def _unpack_next(stream: BinaryIO, *methods: str) -> list[Any]:
    """Decode the next bytes with methods of msgpack.Unpacker; leaves the stream after the bytes consumed."""
    start = stream.tell()
    unpacker = msgpack.Unpacker()
    unpacker.feed(stream.read(1024))
    values = [getattr(unpacker, method)() for method in methods]
    stream.seek(start + unpacker.tell())
    return values


def _read_length(stream: BinaryIO, layouts: dict[int, str]) -> int:
    layout = layouts[stream.read(1)[0]]
    return struct.unpack(layout, stream.read(struct.calcsize(layout)))[0]


def _flatten(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], str, Any]]:
    """Path, shape, dtype and pieces of every array. Flax cuts an array above 1 GB into chunks, a map of its own."""
    if isinstance(tree, tuple):
        yield path, *tree
    elif "__msgpack_chunked_array__" in tree:
        chunks = list(tree["chunks"].values())
        pieces = tuple(piece for _, _, chunk in chunks for piece in chunk)
        yield path, tuple(tree["shape"].values()), chunks[0][1], pieces
    else:
        for key, inner in tree.items():
            yield from _flatten(inner, (*path, key))
