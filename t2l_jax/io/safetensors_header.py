"""Where the tensors of a safetensors file lie: eight bytes of length, a JSON header, then the data.

A header is checked as strictly as the safetensors library does: the tensors fill the rest of the file, each byte of it
once, in any order.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from pydantic import Field, Strict

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained, parse_json
from t2l_jax.io.tensor import PlainTensor, all_finite
from t2l_jax.schema import Count, Schema, Size, checked, shown

DTYPES = {
    name: np.dtype(kind)
    for name, kind in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", jnp.bfloat16))
}
_MAX_HEADER = 100_000_000  # bytes, as in the library


class _Entry(Schema):
    dtype: str
    shape: Annotated[tuple[Count, ...], Strict(False), Field(max_length=8)]
    data_offsets: Annotated[tuple[Size, Size], Strict(False)]


class _Header(Schema):
    tensors: dict[str, _Entry]


class _Metadata(Schema):
    texts: Annotated[dict[str, str], Field(alias="__metadata__")]


def safetensors_tensors(file: Path, unread: Callable[[str], bool] = lambda _: False) -> list[PlainTensor]:
    """The tensors of one file in the order of their data, without those that are `unread` by their names.

    Those may be of any type. Raises UserError for a file that is damaged or cut short.
    """
    with os_errors_explained(file, "read"), open_file(file) as stream:
        return _read_header(stream, file, unread)


def safetensors_metadata(file: Path) -> dict[str, str]:
    """The texts that a file holds beside its tensors. Raises UserError for a file that is damaged or cut short."""
    with os_errors_explained(file, "read"), open_file(file) as stream:
        metadata = _read_json(stream, file)[0].get("__metadata__", {})
    return checked(_Metadata, {"__metadata__": metadata}, f"{file}: damaged: its header").texts


def load_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a file that fits into memory; the arrays cannot be written to."""
    with os_errors_explained(file, "read"), open_file(file) as stream:
        tensors = _read_header(stream, file)
        stream.seek(0)
        data = stream.read()
    arrays = {}
    for tensor in tensors:
        ((offset, _),) = tensor.pieces
        values = np.frombuffer(data, tensor.dtype, math.prod(tensor.shape), offset)
        arrays[tensor.name] = values.reshape(tensor.shape)
    return arrays


def load_float32(file: Path) -> dict[str, np.ndarray]:
    """`load_tensors` in float32. Raises UserError for a tensor with numbers that are not finite in it, too."""
    tensors = {}
    for name, stored in load_tensors(file).items():
        with np.errstate(over="ignore"):
            tensors[name] = stored.astype(np.float32, copy=False)
        if not all_finite(tensors[name]):
            raise UserError(
                f"{file}: tensor {name} is not finite, or too large for float32; download the file or make it again"
            )
    return tensors


def _read_json(stream: BinaryIO, file: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begins, and the size of the file."""
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    start = 8 + length
    if size < 8 or start > size or length > _MAX_HEADER:
        raise UserError(f"{file}: damaged or cut short: not a whole safetensors file; download or copy it again")
    header = parse_json(stream.read(length), f"{file}: damaged: its safetensors header", _without_repeats)
    if not isinstance(header, dict):
        raise UserError(f"{file}: damaged: its safetensors header is no JSON object; download or copy it again")
    return header, start, size


def _read_header(stream: BinaryIO, file: Path, unread: Callable[[str], bool] = lambda _: False) -> list[PlainTensor]:
    header, start, size = _read_json(stream, file)
    header.pop("__metadata__", None)
    entries = checked(_Header, {"tensors": header}, f"{file}: damaged: its header").tensors
    found = [(*entry.data_offsets, name, entry) for name, entry in entries.items()]
    tensors, end = [], 0
    for begin, stop, name, entry in sorted(found, key=lambda each: each[:2]):
        skipped = unread(name)
        if entry.dtype not in DTYPES and not skipped:
            raise UserError(f"{file}: tensor {name} is {shown(entry.dtype)}; only {', '.join(DTYPES)} can be read")
        kind = DTYPES.get(entry.dtype)
        fits = kind is None or stop - begin == math.prod(entry.shape) * kind.itemsize
        if begin != end or stop < begin or not fits or start + stop > size:
            raise UserError(f"{file}: damaged or cut short at tensor {name}; download or copy the file again")
        if not skipped:
            tensors.append(PlainTensor(name, file, entry.shape, kind, ((start + begin, stop - begin),)))
        end = stop
    if start + end != size:
        raise UserError(f"{file}: damaged: it goes on after its last tensor; download or copy the file again")
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header as a dict. Of a name that comes twice JSON readers take either."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found
