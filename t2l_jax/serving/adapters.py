"""The adapters of a server by name: those that clients made, and those written for a description on first use."""

import io
import logging
import secrets
import tempfile
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax

from t2l_jax.decoder import DecoderConfig
from t2l_jax.encoder import prepare
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_family
from t2l_jax.io.cards import CARD_FILE
from t2l_jax.io.files import check_name
from t2l_jax.io.gguf_adapter import save_gguf_adapter
from t2l_jax.io.peft import CONFIG_FILE, DESCRIPTION_FILE, WEIGHTS_FILE, PeftFormat, load_peft
from t2l_jax.lora import Adapter, LoraSpec
from t2l_jax.model import Model
from t2l_jax.serving.described import PREFIX
from t2l_jax.serving.engine import Busy, fitted

TOGETHER = 64  # descriptions whose adapters are written at once
MIXED = "mix:"  # begins the names that the server gives to mixtures
MOST_WAITING = 256  # descriptions
MEMORY = 2**30  # bytes of adapters that clients made, and again of those written for descriptions
MOST = 1024  # of each
_OVERHEAD = 2**21  # bytes of an upload beside the weights


class Unknown(Exception):
    """There is no adapter of this name."""


@dataclass(eq=False)
class Entry:
    """An adapter that the server holds, in the shape that its engine takes."""

    name: str
    adapter: Adapter
    origin: str  # description, mix, upload or folder
    description: str | None = None
    seconds: float | None = None  # in which it was written, with those that were written together with it
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0


class Registry:
    """Adapters by name. All methods may be called from any thread.

    Adapters must fit `spec`, as the engine's do. Those written for a description on first use are kept while there is
    room: the ones that nobody has used for longest go first, and none that is in use.
    """

    def __init__(self, model: Model, base: DecoderConfig, spec: LoraSpec, most: int | None = None) -> None:
        self.model, self.base, self.spec = model, base, spec
        self.most = max(1, min(MOST, MEMORY // (4 * spec.size))) if most is None else most
        self.written = 0
        self._named: dict[str, Entry] = {}
        self._cached: dict[str, Entry] = {}  # by prepared description or mixture, the one used last at the end
        self._pending: dict[str, Future[Entry]] = {}  # likewise
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="adapters", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def cached(self) -> int:
        """How many adapters are kept that have no name of a client's."""
        return len(self._cached)

    def named(self) -> list[Entry]:
        """The adapters that clients made, in that order."""
        with self._changed:
            return list(self._named.values())

    def get(self, name: str) -> Entry:
        """The adapter of this name, made before. Raises Unknown."""
        with self._changed:
            entry = self._named.get(name)
            if entry is None and name.startswith((PREFIX, MIXED)):
                entry = self._cached.get(_key(name))
            if entry is None:
                raise Unknown(name)
            return entry

    def find(self, name: str) -> Future[Entry]:
        """The adapter of this name, or of a description after `t2l:`, which is written if there is none yet.

        Raises Unknown, UserError for a description that is none, and Busy. Never cancel the result: others may wait
        for it, too.
        """
        if not name.startswith((PREFIX, MIXED)):
            return _done(self.get(name))
        text = _key(name)
        with self._changed:
            if entry := self._cached.pop(text, None):
                self._cached[text] = entry
                return _done(entry)
            if name.startswith(MIXED):
                raise Unknown(name)
            if text not in self._pending:
                if self._closed or len(self._waiting) >= MOST_WAITING:
                    raise Busy
                self._pending[text] = Future()
                self._waiting.append(text)
                self._changed.notify()
            return self._pending[text]

    @contextmanager
    def using(self, entry: Entry) -> Iterator[Entry]:
        """Keep the adapter for the time of the block."""
        with self._changed:
            entry.users += 1
        try:
            yield entry
        finally:
            with self._changed:
                entry.users -= 1
                self._make_room()

    def keep(self, adapter: Adapter) -> Entry:
        """Keep a mixture that has no name while there is room, as those written for descriptions."""
        entry = Entry(MIXED + secrets.token_hex(8), fitted(adapter, self.spec), "mix")
        with self._changed:
            self._cached[entry.name] = entry
            self._make_room(keep=[entry])
        return entry

    def check(self, name: str, *, replace: bool = False) -> None:
        """Raise UserError if no adapter can be made under this name."""
        check_name(name)
        if name.startswith((PREFIX, MIXED)) or name in (self.model.config.base_name, self.model.config.base):
            raise UserError(
                f"the name {name[:80]!r} is taken: choose one that begins with neither {PREFIX} nor {MIXED}"
            )
        with self._changed:
            if name in self._named and not replace:
                raise UserError(f"there is an adapter named {name!r} already: choose another name, or delete it first")
            if name not in self._named and len(self._named) >= self.most:
                raise UserError(f"the server holds {self.most} adapters, as many as it can: delete one first")

    def add(self, entry: Entry, *, replace: bool = False) -> Entry:
        """Keep an adapter under its name. Raises UserError as `check` does, and if it does not fit the engine."""
        entry.adapter = fitted(entry.adapter, self.spec)
        with self._changed:
            self.check(entry.name, replace=replace)
            self._named[entry.name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Forget an adapter; what decodes with it goes on. Raises Unknown."""
        with self._changed:
            entry = self.get(name)
            for entries in (self._named, self._cached):
                for key in [key for key, each in entries.items() if each is entry]:
                    del entries[key]

    def close(self) -> None:
        """End the thread that writes adapters; whoever waits for one gets Busy."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
                texts = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            self._write(texts)
        with self._changed:
            self._waiting.clear()
            for future in self._pending.values():
                future.set_exception(Busy())

    def _write(self, texts: Sequence[str]) -> None:
        """Write the adapters of these descriptions and hand them to those who wait."""
        began = time.perf_counter()
        try:
            made = jax.block_until_ready(self.model.generate(texts))
            took = time.perf_counter() - began
            entries = [
                Entry(PREFIX + text, fitted(made[index], self.spec), "description", text, took)
                for index, text in enumerate(texts)
            ]
        except Exception as error:
            logging.getLogger(__name__).exception("adapters could not be written")
            with self._changed:
                futures = [self._pending.pop(text) for text in texts]
            for future in futures:
                future.set_exception(error)
            return
        with self._changed:
            self.written += len(texts)
            self._cached.update(zip(texts, entries, strict=True))
            futures = [self._pending.pop(text) for text in texts]
            self._make_room(keep=entries)
        for future, entry in zip(futures, entries, strict=True):
            future.set_result(entry)

    def _make_room(self, keep: Sequence[Entry] = ()) -> None:
        idle = [text for text, entry in self._cached.items() if not entry.users and entry not in keep]
        for text in idle[: max(0, len(self._cached) - self.most)]:
            del self._cached[text]


def to_zip(entry: Entry, base_name: str) -> bytes:
    """The adapter as a zip file of a PEFT folder."""
    layout = PeftFormat(entry.adapter.spec, base_name)
    blocks = layout.blocks(jax.device_get(entry.adapter.weights))
    card = layout.card.text(entry.description).encode()
    files: dict[str, bytes] = {CONFIG_FILE: layout.config, WEIGHTS_FILE: b"".join(blocks), CARD_FILE: card}
    if entry.description is not None:
        files[DESCRIPTION_FILE] = entry.description.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def to_gguf(entry: Entry, model: Model) -> bytes:
    """The adapter as a GGUF file for llama.cpp. Raises UserError if llama.cpp cannot apply it to this base model."""
    family, base = load_family(str(model.base.path))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "adapter.gguf")
        save_gguf_adapter(
            entry.adapter,
            file,
            family,
            base,
            name=entry.name,
            base_name=model.config.base_name,
            description=entry.description,
        )
        return file.read_bytes()


def from_zip(data: bytes, base: DecoderConfig, spec: LoraSpec) -> Adapter:
    """The adapter in a zip file of a PEFT folder, whose other files are not looked at.

    Raises UserError for anything else, and for files larger than an adapter of this spec can be.
    """
    files = _unzipped(data, {CONFIG_FILE: _OVERHEAD, WEIGHTS_FILE: most_bytes(spec)})
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        try:
            return load_peft(folder, base, most_rank=spec.rank)
        except UserError as error:
            raise UserError(str(error).replace(folder, "the upload")) from error


def most_bytes(spec: LoraSpec) -> int:
    """How large an upload may be: numbers of up to 8 bytes, and headers."""
    return 8 * spec.size + _OVERHEAD


def below(folder: Path | None, path: str) -> Path:
    """A path below the folder that may be read from, links resolved. Raises UserError for any other."""
    if folder is None:
        raise UserError("no folder was opened for loading: start the server with --adapters FOLDER")
    try:
        found = (folder / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError("lora_path is no path of this server") from error
    if not found.is_relative_to(folder.resolve()):
        raise UserError("lora_path is not below the folder that was opened by --adapters")
    return found


def _unzipped(data: bytes, limits: Mapping[str, int]) -> dict[str, bytes]:
    """The files of these names in a zip file, each of at most so many bytes."""
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name, most in limits.items():
                with archive.open(name) as file:
                    found[name] = file.read(most + 1)
                if len(found[name]) > most:
                    raise UserError(f"the upload's {name} has more than {most:,} bytes, the most for this server")
    except KeyError as error:
        raise UserError(f"the upload has no {name}: it must be a zip file of a PEFT folder's files") from error
    except UserError:
        raise
    except Exception as error:  # what a damaged archive raises has no limits
        raise UserError("the upload is no zip file, or damaged: zip the files of a PEFT folder") from error
    return found


def _key(name: str) -> str:
    """Of a description, by what is embedded of it; of a mixture, its name."""
    return name if name.startswith(MIXED) else prepare(name.removeprefix(PREFIX), "the description")


def _done(entry: Entry) -> Future[Entry]:
    future: Future[Entry] = Future()
    future.set_result(entry)
    return future
