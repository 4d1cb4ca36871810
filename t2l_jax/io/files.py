"""Atomic writes, JSONL with line numbers, and names that are safe as folder names.

Files and folders get their final name by one rename, so a killed process leaves only complete ones, and temporaries
(`.*.partial`) that can be deleted. Nothing is synced to disk: a power cut may lose the last seconds.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from t2l_jax.errors import UserError

PARTIAL_SUFFIX = ".partial"
MAX_NAME_BYTES = 200  # file systems allow 255; the rest is room for suffixes
MAX_JSON_BYTES = 2**28


def cache_folder() -> Path:
    """The folder for downloads and other caches: `$T2L_CACHE`, or the user's own. Raises UserError if there is none."""
    try:
        if own := os.environ.get("T2L_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2l_jax"
    except RuntimeError as error:
        raise UserError(f"T2L_CACHE: {error}: set it to a folder for downloads") from error


@contextmanager
def os_errors_explained(path: Path, action: str = "written") -> Iterator[None]:
    """Turn an OSError from reading or writing `path` (disk full, no permission, ...) into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left on the disk of {path}: free some, or choose another disk") from error
        culprit = f" ({error.filename!s:.300})" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(f"{path} cannot be {action}: {error.strerror or error}{culprit}") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UserError(f"{path!r} cannot be {action}: no path holds a null character") from error


def open_file(path: Path) -> BufferedReader:
    """A regular file, opened for reading: a pipe would be waited for, a device has no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise UserError(f"{path}: a pipe or a device, not a file: write its content to a file first")


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises UserError if it cannot be read."""
    with os_errors_explained(path, "read"), open_file(path) as stream:
        return stream.read()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, where they do not exist. Raises OSError, or UserError for a path too deep."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError as error:  # nothing has been created: the deepest folder is tried first
        raise UserError(f"{str(folder)[:80]}...: a thousand folders inside each other: choose another path") from error


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Create the folder and hold an exclusive lock on it during the block; a killed process releases its lock.

    If another process holds the lock, raises UserError or, with `wait`, waits until it is released.
    """
    with os_errors_explained(folder):
        make_folder(folder)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another process is writing here: wait for it, or choose another folder"
            ) from error
        except OSError as error:  # some network file systems do not support locks
            raise UserError(
                f"{folder}: cannot be locked ({error.strerror}): choose a folder on another disk"
            ) from error
        yield
    finally:
        os.close(handle)


def drop_partial_line(path: Path) -> None:
    """Cut off the end of a file of lines after its last newline: a killed process may have left half a line there."""
    with os_errors_explained(path), path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)


def partial_path(folder: Path) -> Path:
    """A fresh temporary path in `folder`, so that a rename within the folder is atomic."""
    return folder / f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}"


def remove_partials(folder: Path) -> None:
    """Delete the temporaries of killed processes in `folder`, which no other process may be writing to."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file completely or leave the old one. Text is encoded as UTF-8. Parent folders are created."""
    with atomic_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write; the file becomes `path` if the block succeeds, and is deleted if it raises.

    Parent folders are created.
    """
    path = Path(path)
    with os_errors_explained(path):
        make_folder(path.parent)
        partial = partial_path(path.parent)
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path` if the block succeeds, and is deleted if it raises.

    Raises UserError if `path` exists and is not an empty folder. An empty one may be a mount point, a link, or where a
    shell stands, so it stays and the entries are renamed into it. With `replace` an existing folder is moved aside just
    before the rename and then deleted; a process killed between the two leaves it under a temporary name.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    with os_errors_explained(path):
        stays = not replace and path.is_dir()
        if not stays:
            make_folder(path.parent)
        partial = partial_path(path if stays else path.parent)
        partial.mkdir()
        try:
            yield partial
            if stays:
                _move_entries(partial, path)
            elif replace and path.exists():
                _exchange(partial, path)
            else:
                partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _move_entries(partial: Path, folder: Path) -> None:
    """Move all that is in `partial` to `folder`, or nothing if that fails halfway."""
    entries = [path.name for path in partial.iterdir()]
    try:
        for name in entries:
            (partial / name).rename(folder / name)
    except BaseException:
        for name in entries:
            if not os.path.lexists(partial / name):
                with suppress(OSError):
                    (folder / name).rename(partial / name)
        raise
    partial.rmdir()


def _exchange(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of an existing folder, which is deleted."""
    old = partial_path(folder.parent)
    folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        with suppress(OSError):
            old.rename(folder)
        raise
    shutil.rmtree(old)


def refuse_nonempty(folder: Path, kind: str) -> None:
    """Raise UserError if a folder for a new `kind` (run, evaluation) already holds files."""
    if folder.exists():
        with os_errors_explained(folder, "read"):
            others = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if others:
            raise UserError(f"{folder}: holds files and no {kind}: give another --out, or delete it first")


def refuse_existing(path: Path, *, empty_folder: bool = True) -> None:
    """Raise UserError if `path` exists and is not an empty folder; or is one, where a file is to be written.

    Temporaries of killed processes do not count.
    """
    with os_errors_explained(path, "read"):
        if empty_folder and path.is_dir() and all(entry.name.endswith(PARTIAL_SUFFIX) for entry in path.iterdir()):
            return
        if os.path.lexists(path):
            raise UserError(f"{path} exists already and is not overwritten: choose another path, or delete it first")


def read_jsonl(path: str | Path, *, partial: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for every non-blank line of a JSONL file.

    With `partial`, a last line without its newline, which a killed process may have left, is passed over.
    Raises UserError with file and line if a line is not UTF-8, not JSON, or not an object.
    """
    path = Path(path)
    with os_errors_explained(path, "read"), open_file(path) as file:
        for number, line in enumerate(file, 1):
            if partial and not line.endswith(b"\n"):
                return
            if line.strip(b" \t\n\r\v\f\xef\xbb\xbf"):
                yield number, _object(parse_json(line, f"{path}, line {number}"), f"{path}, line {number}")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if it is missing, not UTF-8, not JSON, or not an object."""
    return _object(read_json_value(path), str(path))


def read_json_value(path: str | Path) -> Any:
    """What a JSON file holds. Raises UserError if it is missing, not UTF-8, or not JSON."""
    path = Path(path)
    with os_errors_explained(path, "read"), open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise UserError(f"{path}: has more than {MAX_JSON_BYTES >> 20} MiB, too much for a JSON file of a model")
        data = file.read()
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str, pairs: Any = None) -> Any:
    """JSON in UTF-8, with a byte order mark or without. `pairs` is json's object_pairs_hook; it may raise ValueError.

    Raises UserError, starting with `where`, for anything else.
    """
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=pairs)
        if "\\u" in text:  # a lone surrogate is valid JSON, but cannot be encoded as UTF-8 later
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}): save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds half of a UTF-16 surrogate pair: write the character itself") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{where}: not usable JSON: brackets nested too deeply") from error
    except ValueError as error:
        reason = "a number of thousands of digits" if "digits" in str(error) else str(error)
        raise UserError(f"{where}: not usable JSON: {reason}") from error
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object {{...}}, got {type(value).__name__}")
    return value


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with os_errors_explained(path, "read"), open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_name(name: object) -> str:
    """Return the name of a task or adapter if it is safe as a folder name, else raise UserError."""
    if not isinstance(name, str):
        raise UserError(f"a name must be text, got {name!r}")
    problem = None
    if not name.strip():
        problem = "is empty"
    elif "/" in name or "\\" in name:
        problem = "holds a path separator"
    elif name.startswith("."):
        problem = "starts with a dot"
    elif not name.isprintable() or name != name.strip():
        problem = "holds control characters, or spaces at its ends"
    elif len(name.encode()) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    if problem:
        raise UserError(f"the name {name[:80]!r} {problem}: use letters, digits, '_', '-' and '.'")
    return name
