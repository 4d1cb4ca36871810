"""Where the arrays of a Flax msgpack file lie, as `flax.serialization.to_bytes` writes a tree of parameters."""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import msgpack
import numpy as np
from pydantic import Field, Strict

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained
from t2l_jax.io.tensor import PlainTensor
from t2l_jax.schema import Count, Schema, checked

_DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16}
_CHUNKED = "__msgpack_chunked_array__"
_MAPS = {*range(0x80, 0x90), 0xDE, 0xDF}
_EXTS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_BINS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
# What msgpack and the unpacking of anything but what it should be raise.
_MALFORMED = (
    msgpack.UnpackException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
    struct.error,
)


class _Stored(NamedTuple):
    """An array without its bytes: where they lie, as (offset, number of bytes)."""

    shape: Any
    dtype: Any
    piece: tuple[int, int]


class _Array(Schema):
    names: Annotated[tuple[str, ...], Field(min_length=1)]
    shape: Annotated[tuple[Count, ...], Strict(False), Field(max_length=8)]
    dtype: str


def flax_tensors(file: Path) -> Iterator[PlainTensor]:
    """The arrays of one file, under the names of a PyTorch checkpoint. Raises UserError for a damaged file."""
    try:
        with os_errors_explained(file, "read"), open_file(file) as stream:
            tree = _read_entry(stream)
            size = stream.seek(0, os.SEEK_END) if stream.read(1) == b"" else -1
        entries = list(_flatten(tree, ()))
    except _MALFORMED as error:
        raise UserError(f"{file}: not a whole Flax msgpack file; download or copy it again") from error
    if size < 0:
        raise UserError(f"{file}: goes on after its last array: damaged; download or copy it again")
    for names, shape, dtype, pieces in entries:
        where = f"{file}: array {'.'.join(map(str, names))}"
        array = checked(_Array, {"names": names, "shape": shape, "dtype": dtype}, where)
        if array.dtype not in _DTYPES:
            raise UserError(f"{where} is {array.dtype}; only {', '.join(_DTYPES)} can be read")
        kind = np.dtype(_DTYPES[array.dtype])
        in_file = all(offset + length <= size for offset, length in pieces)
        if not in_file or sum(length for _, length in pieces) != math.prod(array.shape) * kind.itemsize:
            raise UserError(f"{file}: ends inside array {'.'.join(names)}; download or copy the file again")
        # Flax calls a matrix `kernel` and keeps it [in, out]; it calls an embedding `embedding`.
        *parents, last = names
        name = ".".join([*parents, "weight" if last in ("kernel", "embedding") else last])
        yield PlainTensor(name, file, array.shape, kind, pieces, transposed=last == "kernel")


def _read_entry(stream: BinaryIO) -> Any:
    """A map as a dict, an array as _Stored, anything else as it is."""
    first = stream.read(1)
    stream.seek(-len(first), os.SEEK_CUR)
    if first[0] in _MAPS:
        (count,) = _unpack_next(stream, "read_map_header")
        found = {_unpack_next(stream, "unpack")[0]: _read_entry(stream) for _ in range(count)}
        if len(found) != count:
            raise ValueError("a name comes twice")
        return found
    if first[0] not in _EXTS:
        return _unpack_next(stream, "unpack")[0]
    _read_length(stream, _EXTS)
    if stream.read(1) != b"\x01":
        raise ValueError("an extension that is not an array")
    fields, shape, dtype = _unpack_next(stream, "read_array_header", "unpack", "unpack")
    if fields != 3:
        raise ValueError("an array is a shape, a dtype and bytes")
    length = _read_length(stream, _BINS)
    piece = stream.tell(), length
    stream.seek(length, os.SEEK_CUR)
    return _Stored(shape, dtype, piece)


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


def _flatten(tree: Any, names: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any, tuple[Any, ...]]]:
    """Names, shape, dtype and pieces of every array. Flax cuts an array above 1 GB into chunks, a map of its own."""
    if isinstance(tree, _Stored):
        yield names, tree.shape, tree.dtype, (tree.piece,)
    elif _CHUNKED in tree:
        chunks = [tree["chunks"][str(index)] for index in range(len(tree["chunks"]))]
        shape = [tree["shape"][str(index)] for index in range(len(tree["shape"]))]
        (dtype,) = {chunk.dtype for chunk in chunks}
        for chunk in chunks:
            if chunk.piece[1] != math.prod(chunk.shape) * np.dtype(_DTYPES[dtype]).itemsize:
                raise ValueError("a chunk of another size")
        yield names, shape, dtype, tuple(chunk.piece for chunk in chunks)
    else:
        for name, inner in tree.items():
            yield from _flatten(inner, (*names, name))
