"""Writes thousands of adapters to a folder at disk speed, and resumes after a kill.

    folder/store.json          fingerprint and format of the adapters; must match to resume
    folder/<name>/             one PEFT folder per adapter
    folder/README.md           a model card of the whole, where `write_collection_card` is called
    folder/manifest.jsonl      name, description, sha256 and bytes of every adapter; written when a run has succeeded

Of several processes in a run all write adapters, to one folder that they share, and the main one the rest. It holds the
folder's lock for all of them; on a network's disk the lock may keep out only other processes on the same host.

Each adapter is written to a temporary folder and renamed. A process killed at any moment leaves only complete adapters,
and temporaries that the next run removes. Nothing is synced: after a power cut, the latest adapters may be truncated,
which `pending` detects by their size.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from t2l_jax.distributed import from_main, gather, in_main, is_main, together
from t2l_jax.errors import UserError
from t2l_jax.io.cards import CARD_FILE, AdapterCard
from t2l_jax.io.files import (
    PARTIAL_SUFFIX,
    atomic_folder,
    atomic_write,
    check_name,
    file_sha256,
    locked,
    os_errors_explained,
    read_file,
    read_json,
    read_jsonl,
    remove_partials,
)
from t2l_jax.io.peft import CONFIG_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, HostWeights, PeftFormat
from t2l_jax.io.shared import check_shared
from t2l_jax.schema import Schema, Text, checked, shown

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.jsonl"
STORE_FILES = (STORE_FILE, MANIFEST_FILE, CARD_FILE)  # beside the adapters
WRITERS = 2  # threads
QUEUE_BYTES = 2**28  # bytes of adapters queued for the writers, at most


def check_adapter_names(names: Sequence[str]) -> None:
    """Raise UserError if a name is unsafe as a folder name, that of a file of the store, or given twice."""
    seen: set[str] = set()
    for name in names:
        if check_name(name).lower() in [file.lower() for file in STORE_FILES]:
            raise UserError(f"an adapter cannot be named {name}: the store has a file of that name")
        if name in seen:
            raise UserError(f"the name {name!r} is given to two adapters: names must differ")
        seen.add(name)


class _Listed(Schema):
    """What is read of a line of a manifest."""

    name: Text
    description: str


def write_collection_card(folder: Path, card: AdapterCard) -> None:
    """Write README.md beside a manifest: a table of the adapters in the folder."""
    path = folder / MANIFEST_FILE
    listed = [checked(_Listed, record, f"{path}, line {number}") for number, record in read_jsonl(path)]
    rows = [(one.name, one.description) for one in listed]
    atomic_write(folder / CARD_FILE, card.of_collection(rows, len(rows), MANIFEST_FILE))


class AdapterStore:
    """A folder to fill with adapters of one format. Use it as a context manager.

        with AdapterStore(folder, PeftFormat(spec, base_model), fingerprint) as store:
            for batch in batches_of(store.pending(names, descriptions)):
                store.write(batch_names, batch_descriptions, batch_of_weights)

    Leaving the block waits for the writers and writes the manifest. An error in a writer is raised by the next `write`
    or on leaving. `fingerprint` identifies what generates the adapters (such as the hypernetwork's digest): a store is
    resumed only with the same fingerprint and format. Several processes enter and leave together.
    """

    def __init__(self, folder: str | Path, files: PeftFormat, fingerprint: str) -> None:
        self.folder = Path(folder)
        self.files = files
        self._header = {
            "fingerprint": fingerprint,
            "base_model": files.base_model,
            "dtype": files.dtype,
            "spec": files.spec.to_dict(),
        }
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="adapter-writer")
        self._queue: deque[Future[None]] = deque()
        self._max_queued = max(WRITERS, QUEUE_BYTES // files.num_bytes)
        self._written: dict[str, dict[str, Any]] = {}  # lines of the manifest by name

    def __enter__(self) -> "AdapterStore":
        """Lock the folder, check its header or write one, and remove the temporaries of a killed run."""
        with ExitStack() as stack:
            stack.enter_context(in_main(partial(locked, self.folder)))
            with together():
                if is_main():
                    with os_errors_explained(self.folder):
                        self._check_header()
                        remove_partials(self.folder)
            check_shared(self.folder)
            self._lock = stack.pop_all()
        return self

    def _check_header(self) -> None:
        path = self.folder / STORE_FILE
        if not path.exists():
            if not all(entry.name.endswith(PARTIAL_SUFFIX) for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files than adapters: choose a new or empty folder")
            atomic_write(path, json.dumps(self._header, indent=2) + "\n")
        theirs = read_json(path)
        ours = json.loads(json.dumps(self._header))
        for key in ours.keys() | theirs.keys() & {"format"}:
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"{path}: the adapters here were made with another {key} ({shown(theirs.get(key))}, now "
                    f"{ours.get(key)}): choose another folder, or delete this one"
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the writers, then write the manifest; after an error, cancel what is queued."""
        try:
            if error is None:
                with together():
                    while self._queue:
                        self._queue.popleft().result()
                written = [record for one in gather(self._written) for record in one.values()]
                with together():
                    if is_main() and (written or not (self.folder / MANIFEST_FILE).exists()):
                        with os_errors_explained(self.folder):
                            self._write_manifest(written)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._lock.close()

    def plan(self, names: Sequence[str], descriptions: Sequence[str]) -> None:
        """The adapters that this process will write, in this order: for stores that must know it beforehand."""

    def pending(self, names: Sequence[str], descriptions: Sequence[str]) -> list[int]:
        """Indices of the adapters that are missing or incomplete, the same in all processes.

        Raises UserError if a name is unsafe as a folder name or repeated, or if an adapter of that name was generated
        from another description.
        """
        missing: list[int] = []
        with together():
            if is_main():
                missing = self._missing(names, descriptions)
        return from_main(missing)

    def _missing(self, names: Sequence[str], descriptions: Sequence[str]) -> list[int]:
        check_adapter_names(names)
        missing = []
        for index, (name, description) in enumerate(zip(names, descriptions, strict=True)):
            if not self._is_whole(name):
                missing.append(index)
            elif self._description(name) != description:
                raise UserError(
                    f"{self.folder / name} was made from another description: "
                    "use another name, or delete that folder to generate it again"
                )
        return missing

    def _is_whole(self, name: str) -> bool:
        folder = self.folder / name
        try:
            return (
                (folder / WEIGHTS_FILE).is_file()
                and (folder / WEIGHTS_FILE).stat().st_size == self.files.num_bytes
                and read_file(folder / CONFIG_FILE) == self.files.config
                and read_file(folder / DESCRIPTION_FILE) != b""
            )
        except (OSError, UserError):
            return False

    def _description(self, name: str) -> str:
        return read_file(self.folder / name / DESCRIPTION_FILE).decode(errors="replace")

    def write(self, names: Sequence[str], descriptions: Sequence[str], weights: HostWeights) -> None:
        """Queue a batch for writing; existing adapters of these names are replaced.

        `weights` is a batch's `Adapter.weights` in host memory (`jax.device_get`), [n, ...], which must not be modified
        afterwards; rows beyond the names (padding) are ignored. Blocks while more than QUEUE_BYTES are queued.
        """
        with suppress(FileNotFoundError):
            (self.folder / MANIFEST_FILE).unlink()  # it would be outdated
        for index, (name, description) in enumerate(zip(names, descriptions, strict=True)):
            while len(self._queue) >= self._max_queued or (self._queue and self._queue[0].done()):
                self._queue.popleft().result()
            one = jax.tree.map(lambda array: array[index], weights)  # noqa: B023
            self._queue.append(self._pool.submit(self._write_one, check_name(name), description, one))

    def _write_one(self, name: str, description: str, weights: HostWeights) -> None:
        target = self.folder / name
        blocks = self.files.blocks(weights)
        with os_errors_explained(target):
            if target.is_dir():
                shutil.rmtree(target)
            with atomic_folder(target) as folder:
                self.files.write(folder, blocks, description)
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        self._written[name] = self._record(name, description, digest.hexdigest())

    def _record(self, name: str, description: str, sha256: str) -> dict[str, Any]:
        return {"name": name, "description": description, "sha256": sha256, "bytes": self.files.num_bytes}

    def _write_manifest(self, written: Sequence[dict[str, Any]]) -> None:
        """List every complete adapter in the folder, sorted by name. Those of earlier runs are read to hash them."""
        records = {record["name"]: record for record in written}
        for path in self.folder.iterdir():
            name = path.name
            if name not in records and path.is_dir() and self._is_whole(name):
                records[name] = self._record(name, self._description(name), file_sha256(path / WEIGHTS_FILE))
        lines = [json.dumps(records[name], ensure_ascii=False) + "\n" for name in sorted(records)]
        atomic_write(self.folder / MANIFEST_FILE, "".join(lines))
