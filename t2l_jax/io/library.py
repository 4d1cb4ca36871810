"""A library of LoRA adapters, one per task, as arrays that are read from disk batch by batch.

PEFT folders are checked and packed once into the cache: one float32 file [N, L, r, i] or [N, L, o, r] per side of each
projection, mapped into memory. A batch then reads its own rows, whatever the size of the library. The packed copy also
keeps a run apart from folders that change beneath it; its name is a hash of what it was made from.

Axes: N adapters, L layers, r rank, i input width, o output width.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.files import atomic_folder, check_name, locked, os_errors_explained
from t2l_jax.io.peft import CONFIG_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, digest, load_peft
from t2l_jax.lora import Adapter, LoraSpec
from t2l_jax.progress import progress_bar

FORMAT = 1  # part of the name of a packed library: increment if it would be packed otherwise
Sides = dict[str, dict[str, Any]]  # projection -> side -> host array of one adapter, or of many


@dataclass(frozen=True)
class Entry:
    """One adapter of a library."""

    name: str
    folder: Path
    descriptions: tuple[str, ...]  # the lines of its description.txt, if there is one


@dataclass(frozen=True)
class Library:
    """A packed library. Indexed with task numbers it gives one Adapter of host arrays with a leading axis."""

    entries: tuple[Entry, ...]
    spec: LoraSpec
    base: str | None  # name of the base model that the adapters are for, if their configs say it
    folder: Path

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Sequence[int] | np.ndarray | slice) -> Adapter:
        rows: Sides = {}
        for name, pair in self._maps.items():
            rows[name] = {side: np.array(mapped[index]) for side, mapped in pair.items()}
        return Adapter(rows, self.spec)

    @cached_property
    def digest(self) -> str:
        """A hash of the adapters and of the form they are packed in."""
        return self.folder.name

    def statistics(self, rows: np.ndarray | None = None) -> tuple[Adapter, Adapter]:
        """Mean and standard deviation (of a sample, as PyTorch computes it) of each weight over these adapters, or all.

        Raises UserError if a weight is the same in all adapters: it has no z-score.
        """
        means: Sides = {}
        deviations: Sides = {}
        places = np.arange(len(self)) if rows is None else rows
        for name, pair in self._maps.items():
            for side, mapped in pair.items():
                mean, std = _moments(mapped, places)
                # A deviation that float32 cannot tell from the mean's rounding is none.
                if not (std > np.abs(mean) * np.finfo(np.float32).eps).all():
                    raise UserError(
                        f"the library: some weights of {name}'s {side.upper()} are the same in all {len(places)} "
                        "adapters, so that z-scores of them do not exist: choose --objective.loss gram or delta and "
                        "--hypernet.no-standardised, or a library of adapters that were trained apart"
                    )
                means.setdefault(name, {})[side], deviations.setdefault(name, {})[side] = mean, std
        return Adapter(means, self.spec), Adapter(deviations, self.spec)

    @cached_property
    def _maps(self) -> Sides:
        """The files, mapped once: they stay readable where the cache is emptied."""
        return {
            name: {side: np.load(_file(self.folder, name, side), mmap_mode="r") for side in ("a", "b")}
            for name in self.spec.names
        }


def open_library(folder: Path, cache: Path, *, alpha: float, rslora: bool, canonical: bool = False) -> Library:
    """The adapters in the PEFT folders below `folder`, packed in the folder `cache` on first use, by one run at a time.

    B is rescaled to the scale of `alpha` and `rslora`. With `canonical`, factors are replaced by those of
    `canonical_factors`. Adapters that are damaged, or that differ from most others in rank, projections, layers or base
    model, are left out with a warning that names them. Raises UserError if fewer than two are left, or if a file
    changes while it is read.
    """
    entries, spec, base, digests = _survey(folder)
    spec = replace(spec, alpha=alpha, rslora=rslora)
    form = repr([FORMAT, digests, spec.to_dict(), canonical, [entry.name for entry in entries]])
    packed = cache / hashlib.sha256(form.encode()).hexdigest()
    library = Library(tuple(entries), spec, base, packed)
    if not packed.exists():
        with locked(cache, wait=True):
            if not packed.exists():  # another run may have packed it meanwhile
                with atomic_folder(packed) as partial:
                    _pack(library, partial, digests, canonical)
    return library


def canonical_factors(
    a: Float[np.ndarray, "*L r i"], b: Float[np.ndarray, "*L o r"]
) -> tuple[Float[np.ndarray, "*L r i"], Float[np.ndarray, "*L o r"]]:
    """The factors sqrt(S) Vᵀ and U sqrt(S) of the same B A, with signs that make each column of U sum to above zero.

    B A = U S Vᵀ is computed from the factors' QR decompositions, so that nothing of shape [o, i] is formed. Equal
    deltas have equal canonical factors, unless singular values coincide.
    """
    left, right = np.linalg.qr(b.astype(np.float64)), np.linalg.qr(np.swapaxes(a, -1, -2).astype(np.float64))
    u, s, vt = np.linalg.svd(left.R @ np.swapaxes(right.R, -1, -2), full_matrices=False)
    columns, root = left.Q @ u, np.sqrt(s)
    signs = np.where(columns.sum(axis=-2) < 0, -1.0, 1.0)
    new_a, new_b = np.zeros_like(a), np.zeros_like(b)  # of a projection narrower than the rank, the last rows stay zero
    count = s.shape[-1]
    new_a[..., :count, :] = (signs * root)[..., None] * (vt @ np.swapaxes(right.Q, -1, -2))
    new_b[..., :count] = columns * (signs * root)[..., None, :]
    return new_a, new_b


def _survey(folder: Path) -> tuple[list[Entry], LoraSpec, str | None, list[str]]:
    """The adapters that belong together, their spec (scale apart) and base model, and a hash of each one's files."""
    with os_errors_explained(folder, "read"):
        below = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if not below:
        raise UserError(f"{folder}: holds no folders of adapters (NAME/{CONFIG_FILE}): give a folder of PEFT folders")
    read: list[tuple[Entry, LoraSpec, str | None, str]] = []
    problems: list[str] = []
    with progress_bar() as progress:
        bar = progress.add_task("checking adapters", total=len(below), rate="")
        for path in below:
            try:
                adapter, files = _unchanged(path, load_peft)
                if not any(pair["a"].any() and pair["b"].any() for pair in adapter.weights.values()):
                    raise UserError(f"{path}: every A or B is zero: an adapter that was not trained")
                config = AdapterConfig.read(path / CONFIG_FILE)
                texts = _descriptions(path / DESCRIPTION_FILE)
                spec = replace(adapter.spec, alpha=1.0, rslora=False)
                base = config.options.base_model_name_or_path
                read.append((Entry(check_name(path.name), path, texts), spec, base, files))
            except UserError as error:
                problems.append(str(error))
            progress.advance(bar)
    if not read:
        raise UserError(problems[0])
    (spec, base), most = Counter((spec, base) for _, spec, base, _ in read).most_common(1)[0]
    for entry, own, own_base, _ in read:
        if (own, own_base) != (spec, base):
            problems.append(f"{entry.folder}: {_difference(own, own_base, spec, base)}")
    if most < 2 or most <= len(read) // 2:
        raise UserError(
            "; ".join([f"{folder}: two adapters or more, and most of them, must be of one kind", *problems])
        )
    if problems:
        warnings.warn(
            f"{folder}: {len(problems)} of {len(below)} adapters are left out, {most} are left: {'; '.join(problems)}",
            stacklevel=3,
        )
    kept = [(entry, files) for entry, own, own_base, files in read if (own, own_base) == (spec, base)]
    return [entry for entry, _ in kept], spec, base, [files for _, files in kept]


def _difference(own: LoraSpec, own_base: str | None, spec: LoraSpec, base: str | None) -> str:
    """In what an adapter differs from most others."""
    if own_base != base:
        return f"adapts the base model {own_base}, most others {base}"
    for name, value, usual in ((key, getattr(own, key), getattr(spec, key)) for key in ("rank", "num_layers", "names")):
        if value != usual:
            return f"{name} is {value}, that of most others {usual}"
    return "its projections' widths differ from most others'"


def _unchanged(folder: Path, load: Callable[[Path], Adapter]) -> tuple[Adapter, str]:
    """The adapter in a folder and the hash of its files. Raises UserError if they change meanwhile."""
    before = digest(folder)
    adapter = load(folder)
    if digest(folder) != before:
        raise UserError(f"{folder}: {WEIGHTS_FILE} changed while it was read: wait until it is written")
    return adapter, before


def _descriptions(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    with os_errors_explained(path, "read"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text: write it anew") from error
    return tuple(line.strip() for line in lines if line.strip())


def _pack(library: Library, folder: Path, digests: Sequence[str], canonical: bool) -> None:
    spec = library.spec
    files: Sides = {}
    for name, shapes in spec.shapes().items():
        for side, shape in shapes.items():
            path = _file(folder, name, side)
            files.setdefault(name, {})[side] = np.lib.format.open_memmap(path, "w+", np.float32, (len(library), *shape))
            with path.open("r+b") as file:  # a full disk is an error here, and a crash where the map is written
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    with progress_bar() as progress:
        bar = progress.add_task("packing adapters", total=len(library), rate="")
        for index, (entry, known) in enumerate(zip(library.entries, digests, strict=True)):
            adapter, files_now = _unchanged(entry.folder, load_peft)
            if files_now != known:
                raise UserError(f"{entry.folder}: {WEIGHTS_FILE} changed while it was read: wait until it is written")
            for name, pair in jax.device_get(adapter.weights).items():
                a, b = pair["a"], pair["b"] * np.float32(adapter.spec.scale / spec.scale)
                a, b = canonical_factors(a, b) if canonical else (a, b)
                files[name]["a"][index], files[name]["b"][index] = a, b
            progress.advance(bar)
    for pair in files.values():
        for mapped in pair.values():
            mapped.flush()


def _file(folder: Path, name: str, side: str) -> Path:
    return folder / f"{name}.{side}.npy"


def _moments(mapped: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over these rows, one adapter in memory at a time."""
    mean = np.zeros(mapped.shape[1:], np.float64)
    squares = np.zeros_like(mean)
    for count, row in enumerate(rows, start=1):  # Welford
        change = mapped[row] - mean
        mean += change / count
        squares += change * (mapped[row] - mean)
    return mean.astype(np.float32), np.sqrt(squares / (len(rows) - 1)).astype(np.float32)
