"""Thousands of adapters in few files: a shard is a safetensors file of some hundred adapters, stacked.

    folder/store.json                     as of `AdapterStore`, and "format": "packed"
    folder/adapters-00000-000.safetensors q_proj.a [n, L, r, i], q_proj.b [n, L, o, r], ... as the network wrote them (B
                                          unscaled); `adapters` of its metadata is a JSON list of [name, description]
    folder/manifest.jsonl                 name, description, shard, row of every adapter; written when a run succeeds

The second number of a shard is its process's. A shard is written to a temporary file, at the right places as batches
come, and renamed when it is whole: a process killed at any moment leaves only complete ones, and loses what it has
written of the next. Axes: n adapters of a shard, L layers, r rank, i/o input/output width.
"""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Strict

from t2l_jax.errors import UserError
from t2l_jax.io.adapter_store import MANIFEST_FILE, QUEUE_BYTES, STORE_FILE, AdapterStore, check_adapter_names
from t2l_jax.io.files import (
    atomic_write,
    os_errors_explained,
    parse_json,
    partial_path,
    read_json,
    read_jsonl,
)
from t2l_jax.io.peft import DTYPES, HostWeights, PeftFormat
from t2l_jax.io.safetensors_header import safetensors_metadata, safetensors_tensors
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import Adapter, LoraModule, LoraSpec
from t2l_jax.schema import Count, Positive, Schema, checked, shown

SHARD_ADAPTERS = 256
PATTERN = "adapters-*.safetensors"
Row = tuple[str, str]  # name and description


class _Widths(Schema):
    modules: dict[str, Annotated[tuple[Count, Count], Strict(False)]]
    num_layers: Count
    rank: Count
    alpha: Positive
    rslora: bool


class _Store(Schema):
    format: Literal["packed"]
    base_model: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    spec: _Widths


class _Rows(Schema):
    adapters: list[Annotated[tuple[str, str], Strict(False)]]


def leaf_shapes(spec: LoraSpec, count: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a shard of `count` adapters, in the order of their data."""
    return {
        f"{module}.{side}": (count, *shape) for module, sides in spec.shapes().items() for side, shape in sides.items()
    }


class _Shard:
    """A shard that is being written."""

    def __init__(self, path: Path, files: PeftFormat, rows: Sequence[Row]) -> None:
        self.path, self.rows = path, rows
        self._left, self._lock = len(rows), threading.Lock()
        itemsize = jnp.dtype(files.dtype).itemsize
        entries: dict[str, Any] = {"__metadata__": {"adapters": json.dumps(rows, ensure_ascii=False)}}
        ends, end = {}, 0
        for name, shape in leaf_shapes(files.spec, len(rows)).items():
            ends[name], begin = end, end
            end += math.prod(shape) * itemsize
            entries[name] = {"dtype": DTYPES[files.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._starts = {name: 8 + len(text) + begin for name, begin in ends.items()}
        self._partial = partial_path(path.parent)
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            self._pwrite(np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8), 0)
            os.ftruncate(self._file, 8 + len(text) + end)
        except BaseException:
            self.abandon()  # the store does not know it yet
            raise

    def write(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write adapters [n, ...] from a row on, each leaf with one write; the last one gives the shard its name."""
        count = 0
        for name, array in arrays.items():
            # Not all_finite: NumPy's max and min of bfloat16 are eight times slower.
            if not np.isfinite(array).all():
                raise UserError(f"{self.path}: the weights of {name} are not finite")
            count = len(array)
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._pwrite(data, self._starts[name] + row * (data.size // count))
        with self._lock:
            self._left -= count
            if self._left == 0:
                os.close(self._file)
                self._partial.replace(self.path)

    def abandon(self) -> None:
        """Delete what is not whole."""
        if self._left:
            with suppress(OSError):
                os.close(self._file)
            with suppress(OSError):
                self._partial.unlink()

    def _pwrite(self, data: np.ndarray, place: int) -> None:
        view = data.data
        while len(view):
            written = os.pwrite(self._file, view, place)
            view, place = view[written:], place + written


class PackedStore(AdapterStore):
    """An `AdapterStore` that writes shards. `plan` says what `write` will be given."""

    def __init__(self, folder: str | Path, files: PeftFormat, fingerprint: str) -> None:
        super().__init__(folder, files, fingerprint)
        self._header["format"] = "packed"
        self._planned: deque[list[Row]] = deque()
        self._shard: _Shard | None = None
        self._row = 0  # of the shard, to be written next
        self._open: list[_Shard] = []
        self._next = 0

    def plan(self, names: Sequence[str], descriptions: Sequence[str]) -> None:
        """The adapters that this process will write, in this order."""
        rows = list(zip(names, descriptions, strict=True))
        self._planned = deque(rows[i : i + SHARD_ADAPTERS] for i in range(0, len(rows), SHARD_ADAPTERS))
        numbers = [path.name.split("-")[1] for path in self.folder.glob(PATTERN)]
        self._next = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)

    def _missing(self, names: Sequence[str], descriptions: Sequence[str]) -> list[int]:
        """As of the folders. Shards that are not whole, as a power cut may leave them, are deleted."""
        check_adapter_names(names)
        found: dict[str, str] = {}
        for path in self.folder.glob(PATTERN):
            try:
                found.update(read_rows(path, self.files.spec, self.files.dtype))
            except UserError:
                with os_errors_explained(path):
                    path.unlink()
        for name, description in zip(names, descriptions, strict=True):
            if found.get(name, description) != description:
                raise UserError(f"{self.folder}: {name} was made from another description: use another name")
        return [index for index, name in enumerate(names) if name not in found]

    def write(self, names: Sequence[str], descriptions: Sequence[str], weights: HostWeights) -> None:
        """Queue a batch for writing: the next adapters of the plan. See `AdapterStore.write`."""
        with suppress(FileNotFoundError):
            (self.folder / MANIFEST_FILE).unlink()  # it would be outdated
        arrays = {f"{module}.{side}": array for module, sides in weights.items() for side, array in sides.items()}
        given = {name: (array.shape[1:], array.dtype.name) for name, array in arrays.items()}
        wanted = {name: (shape[1:], self.files.dtype) for name, shape in leaf_shapes(self.files.spec, 1).items()}
        if given != wanted:
            raise UserError(f"the adapters' weights do not fit the store: expected {wanted}, got {given}")
        most = max(1, QUEUE_BYTES // sum(array.nbytes for array in arrays.values()))
        start = 0
        while start < len(names):
            while len(self._queue) >= most or (self._queue and self._queue[0].done()):
                self._queue.popleft().result()
            shard = self._current_shard()
            count = min(len(names) - start, len(shard.rows) - self._row)
            batch = list(zip(names, descriptions, strict=True))[start : start + count]
            if batch != list(shard.rows[self._row : self._row + count]):
                raise ValueError("these are not the next adapters of the plan")
            part = {name: array[start : start + count] for name, array in arrays.items()}
            self._queue.append(self._pool.submit(self._write_part, shard, self._row, part))
            start, self._row = start + count, self._row + count

    def _current_shard(self) -> _Shard:
        if self._shard is None or self._row == len(self._shard.rows):
            path = self.folder / f"adapters-{self._next:05d}-{jax.process_index():03d}.safetensors"
            with os_errors_explained(path):
                self._shard = _Shard(path, self.files, self._planned.popleft())
            self._open = [shard for shard in self._open if not shard.path.exists()] + [self._shard]
            self._next, self._row = self._next + 1, 0
        return self._shard

    def _write_part(self, shard: _Shard, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        with os_errors_explained(shard.path):
            shard.write(row, arrays)
        self._written[shard.path.name] = {}

    def _write_manifest(self, written: Sequence[dict[str, Any]]) -> None:
        """List every adapter, sorted by name."""
        records = {}
        for path in self.folder.glob(PATTERN):
            for row, (name, description) in enumerate(read_rows(path, self.files.spec, self.files.dtype)):
                records[name] = {"name": name, "description": description, "shard": path.name, "row": row}
        lines = [json.dumps(records[name], ensure_ascii=False) + "\n" for name in sorted(records)]
        atomic_write(self.folder / MANIFEST_FILE, "".join(lines))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            for shard in self._open:
                shard.abandon()


def read_rows(path: Path, spec: LoraSpec, dtype: str) -> list[Row]:
    """The names and descriptions in a shard. Raises UserError for one that is damaged, cut short or another's."""
    tensors = safetensors_tensors(path)
    text = safetensors_metadata(path).get("adapters", "")
    rows = checked(_Rows, {"adapters": parse_json(text.encode(), f"{path}: its list of adapters")}, str(path)).adapters
    wanted = [(name, shape, dtype) for name, shape in leaf_shapes(spec, len(rows)).items()]
    if [(tensor.name, tensor.shape, np.dtype(tensor.dtype).name) for tensor in tensors] != wanted or not rows:
        raise UserError(f"{path}: its tensors are not those of {STORE_FILE}")
    check_adapter_names([name for name, _ in rows])
    return rows


class PackedAdapters(Mapping[str, Adapter]):
    """The adapters of a packed folder by name, each read from a memory-mapped shard when it is asked for.

        adapter = PackedAdapters("adapters/")["last"]

    An adapter is float32, whatever is stored. Asking for one of a damaged shard raises a UserError that names all that
    are lost with it; the others can be read. Raises UserError for a folder that is not packed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / STORE_FILE
        data = read_json(file)
        if data.get("format") != "packed":
            raise UserError(f"{file}: no packed adapters: format is {shown(data.get('format'))}, expected 'packed'")
        store = checked(_Store, data, str(file))
        modules = tuple(LoraModule(name, *widths) for name, widths in store.spec.modules.items())
        self.base_model, self.dtype = store.base_model, store.dtype
        self.spec = LoraSpec(modules, store.spec.num_layers, store.spec.rank, store.spec.alpha, store.spec.rslora)
        self.descriptions: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        damaged: dict[str, str] = {}
        for path in sorted(self.folder.glob(PATTERN)):
            try:
                rows = read_rows(path, self.spec, self.dtype)
            except UserError as error:
                damaged[path.name] = str(error)
                continue
            self._places.update({name: (path, row) for row, (name, _) in enumerate(rows)})
            self.descriptions.update(rows)
        self._lost = self._find_lost(damaged)
        self._mapped = cache(self._map)

    def _find_lost(self, damaged: dict[str, str]) -> dict[str, str]:
        """What to say of each adapter that the manifest lists and no shard holds."""
        if not (self.folder / MANIFEST_FILE).exists():
            return {}
        names: dict[str, list[str]] = {}
        for _, record in read_jsonl(self.folder / MANIFEST_FILE):
            name, shard = record.get("name"), record.get("shard")
            if isinstance(name, str) and isinstance(shard, str) and name not in self._places:
                names.setdefault(shard, []).append(name)
        return {
            name: f"{damaged.get(shard, f'{self.folder / shard} is missing')}; lost with it: {', '.join(lost)}: "
            "generate them again"
            for shard, lost in names.items()
            for name in lost
        }

    @property
    def lost(self) -> tuple[str, ...]:
        """The names of adapters whose shard is damaged or missing, as far as there is a manifest."""
        return tuple(self._lost)

    def __getitem__(self, name: str) -> Adapter:
        if name in self._lost:
            raise UserError(self._lost[name])
        path, row = self._places[name]
        weights: dict[str, dict[str, jax.Array]] = {module: {} for module in self.spec.names}
        for leaf, array in self._mapped(path).items():
            module, side = leaf.split(".")
            values = array[row].astype(np.float32)
            if not all_finite(values):
                raise UserError(f"{path}: damaged: {leaf} of {name} is not finite: generate it again")
            weights[module][side] = jnp.asarray(values)
        return Adapter(weights, self.spec)

    def _map(self, path: Path) -> dict[str, np.ndarray]:
        with os_errors_explained(path, "read"):
            return {
                tensor.name: np.memmap(path, np.dtype(tensor.dtype), "r", tensor.pieces[0][0], tensor.shape)
                for tensor in safetensors_tensors(path)
            }

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
