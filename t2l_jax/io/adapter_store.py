"""Thousands of adapters to a folder, as fast as the disk takes them, and resumable.

    folder/store.json          what made the adapters: whoever continues must be the same
    folder/<name>/             one PEFT folder for each adapter
    folder/manifest.jsonl      name, description, sha256 and bytes of every adapter; there when a run has ended well

Every adapter appears by the rename of a finished temporary folder. A process killed at any moment leaves whole
adapters, and temporaries that the next start removes. Nothing is synced: after a power cut, an adapter of the last
seconds may be cut short, which `pending` sees by its size.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from t2l_jax.errors import UserError
from t2l_jax.io.files import (
    PARTIAL_SUFFIX,
    atomic_folder,
    atomic_write,
    check_name,
    locked,
    os_errors_explained,
    read_json,
    remove_partials,
)
from t2l_jax.io.peft import CONFIG_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, HostWeights, PeftFormat

STORE_FILE = "store.json"
MANIFEST_FILE = "manifest.jsonl"
WRITERS = 2  # threads
QUEUE_BYTES = 2**28  # of adapters that wait for a writer


class AdapterStore:
    """A folder that is being filled with adapters of one format. Use it as a context manager.

        with AdapterStore(folder, PeftFormat(spec, base_model), fingerprint) as store:
            for batch in batches_of(store.pending(names, descriptions)):
                store.write(batch_names, batch_descriptions, batch_of_weights)

    Leaving the block waits for the writers and writes the manifest; an error in a writer is raised by the next
    `write`, or there. `fingerprint` says what makes the adapters (the hypernetwork's digest, say): a store is
    continued only with the same fingerprint and format.
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
        self._digests: dict[str, str] = {}

    def __enter__(self) -> "AdapterStore":
        """Lock the folder, check that it is a store of ours or make it one, and clear what a killed run left."""
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            with os_errors_explained(self.folder):
                self._check_header()
                remove_partials(self.folder)
            self._lock = stack.pop_all()
        return self

    def _check_header(self) -> None:
        path = self.folder / STORE_FILE
        if not path.exists():
            if not all(entry.name.endswith(PARTIAL_SUFFIX) for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder} holds other files than adapters: choose a new or empty folder")
            atomic_write(path, json.dumps(self._header, indent=2) + "\n")
        theirs = read_json(path)
        for key, value in json.loads(json.dumps(self._header)).items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{path}: the adapters here were made with another {key} ({theirs.get(key)}, now {value}): "
                    "choose another folder, or delete this one"
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the writers, then write the manifest; after an error, drop what is still queued."""
        try:
            while error is None and self._queue:
                self._queue.popleft().result()
            if error is None and not (self.folder / MANIFEST_FILE).exists():
                self._write_manifest()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._lock.close()

    def pending(self, names: Sequence[str], descriptions: Sequence[str]) -> list[int]:
        """Positions of the adapters that are not here yet, or not whole.

        Raises UserError for a name that cannot be a folder or comes twice, and for an adapter that is here, made from
        another description.
        """
        seen: set[str] = set()
        missing = []
        for index, (name, description) in enumerate(zip(names, descriptions, strict=True)):
            if check_name(name) in (STORE_FILE, MANIFEST_FILE):
                raise UserError(f"an adapter cannot be named {name}: the store has a file of that name")
            if name in seen:
                raise UserError(f"the name {name!r} is given to two adapters: names must differ")
            seen.add(name)
            if not self._is_whole(name):
                missing.append(index)
            elif self._description(name) != description:
                raise UserError(
                    f"{self.folder / name} was made from another description: "
                    "use another name, or delete that folder to make it anew"
                )
        return missing

    def _is_whole(self, name: str) -> bool:
        folder = self.folder / name
        try:
            return (
                (folder / WEIGHTS_FILE).stat().st_size == self.files.num_bytes
                and (folder / CONFIG_FILE).read_bytes() == self.files.config
                and (folder / DESCRIPTION_FILE).stat().st_size > 0
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _description(self, name: str) -> str:
        return (self.folder / name / DESCRIPTION_FILE).read_bytes().decode(errors="replace")

    def write(self, names: Sequence[str], descriptions: Sequence[str], weights: HostWeights) -> None:
        """Hand a batch to the writers; what stood under these names is replaced.

        `weights` is a batch's `Adapter.weights` in host memory (`jax.device_get`), [n, ...], not to be changed
        afterwards; rows beyond the names (a last batch's padding) are left out. Waits while more than QUEUE_BYTES of
        adapters are queued, so that memory stays bounded.
        """
        with suppress(FileNotFoundError):
            (self.folder / MANIFEST_FILE).unlink()  # it would no longer be true
        for index, (name, description) in enumerate(zip(names, descriptions, strict=True)):
            while len(self._queue) >= self._max_queued or (self._queue and self._queue[0].done()):
                self._queue.popleft().result()
            one = jax.tree.map(lambda array: array[index], weights)  # noqa: B023
            self._queue.append(self._pool.submit(self._write_one, check_name(name), description, one))

    def _write_one(self, name: str, description: str, weights: HostWeights) -> None:
        target = self.folder / name
        blocks = self.files.blocks(weights)
        with os_errors_explained(target):
            if target.exists():
                shutil.rmtree(target)
            with atomic_folder(target) as folder:
                self.files.write(folder, blocks, description)
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        self._digests[name] = digest.hexdigest()

    def _write_manifest(self) -> None:
        """List every whole adapter of the folder, sorted by name. Those of earlier runs are read once for sha256."""
        lines = []
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and self._is_whole(path.name):
                record: dict[str, Any] = {"name": path.name, "description": self._description(path.name)}
                record["sha256"] = self._digests.get(path.name) or _sha256(path / WEIGHTS_FILE)
                record["bytes"] = self.files.num_bytes
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        atomic_write(self.folder / MANIFEST_FILE, "".join(lines))


def _sha256(path: Path) -> str:
    with os_errors_explained(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
