"""What a reader of model files yields: tensors that are read a few rows at a time."""

import math
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t2l_jax.errors import UserError


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

    def read(self, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        """Rows [start, stop), or some columns of them. Raises UserError if the file is truncated."""
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

    def read(self, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        item = np.dtype(self.dtype).itemsize
        row = math.prod(self.shape[1:]) * item
        width = self.shape[1:] if columns is None else (len(columns),)
        out = np.empty((stop - start, *width), self.dtype)
        into = out.reshape(-1).view(np.uint8).data
        with self.file.open("rb", buffering=0) as file:
            if columns is None:
                self._read_into(file, start * row, into)
            else:
                part = len(columns) * item
                for place in range(stop - start):
                    begin = (start + place) * row + columns.start * item
                    self._read_into(file, begin, into[place * part : (place + 1) * part])
        return out

    def _read_into(self, file: FileIO, begin: int, into: memoryview) -> None:
        """Fill `into` with what the pieces hold from byte `begin` on."""
        filled = 0
        for offset, size in self.pieces:
            if begin < size and filled < len(into):
                part = into[filled : filled + size - begin]
                file.seek(offset + begin)
                if file.readinto(part) != len(part):
                    raise UserError(f"{self.file}: ends inside tensor {self.name}; download or copy the file again")
                filled += len(part)
            begin = max(begin - size, 0)


def all_finite(array: np.ndarray) -> bool:
    """Whether an array has no NaN and no infinity; without a second array as large, as np.isfinite makes."""
    return array.size == 0 or (math.isfinite(array.max()) and math.isfinite(array.min()))
