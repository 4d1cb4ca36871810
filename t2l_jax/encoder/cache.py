"""From prepared texts to z: encoded once, kept in the cache folder, read from there afterwards.

Axes: n texts, d embedding width.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import save

from t2l_jax.encoder.text import Encoder
from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, file_sha256
from t2l_jax.io.gguf_header import split_parts
from t2l_jax.io.safetensors_header import load_tensors
from t2l_jax.progress import progress_bar

SHOW_PROGRESS_FROM = 1000  # texts

log = logging.getLogger(__name__)
Chunk = TypeVar("Chunk")


def embed_texts(
    encoder: Encoder,
    encode: Callable[[list[str]], np.ndarray],
    prepared: list[str],
    cache: Path | None,
) -> Float32[np.ndarray, "n d"]:
    """z of each text: encoded and normalised, or read from the cache folder."""
    file = None
    if cache is not None:
        key = json.dumps([encoder.fingerprint, prepared]).encode()
        file = cache / f"{hashlib.sha256(key).hexdigest()[:40]}.safetensors"
        stored = _read(file, (len(prepared), encoder.dim))
        if stored is not None:
            return stored
    embeddings = encode(prepared)
    z = _normalised(embeddings, prepared, encoder)
    if file is not None:
        atomic_write(file, save({"z": z}))
    return z


def _normalised(
    embeddings: Float32[np.ndarray, "n d"], texts: list[str], encoder: Encoder
) -> Float32[np.ndarray, "n d"]:
    """z of the embeddings. Raises UserError that names the first text whose embedding has no direction."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    for index in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))):
        what = "zero: it knows none of the words" if norms[index] == 0 else "not finite: its weights are damaged"
        raise UserError(f"description {index + 1}, {texts[index][:60]!r}: {encoder.name}'s embedding of it is {what}")
    return embeddings * (math.sqrt(encoder.dim) / norms)


def _read(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What an earlier run stored, or None if there is nothing or it is damaged (every z has the same norm)."""
    if not file.exists():
        return None
    try:
        z = load_tensors(file)["z"]
    except (UserError, KeyError):
        z = np.empty(0)
    if (
        z.dtype == np.float32
        and z.shape == shape
        and np.allclose(np.linalg.norm(z, axis=-1), math.sqrt(shape[1]), rtol=1e-4)
    ):
        return z
    log.warning("%s is damaged: embedding its texts again", file)
    return None


def fingerprint(kind: str, *paths: Path) -> str:
    """A hash of every file of a model: other weights or another pooling are another encoder."""
    digest = hashlib.sha256(kind.encode())
    for path in paths:
        for file in split_parts(path) if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(os.fsencode(f"{os.path.relpath(file, path)} {file_sha256(file)}"))
    return digest.hexdigest()


def with_progress(chunks: Sequence[Chunk], texts: int) -> Iterator[Chunk]:
    """The chunks, with a progress bar if there are many texts."""
    if texts < SHOW_PROGRESS_FROM:
        yield from chunks
        return
    with progress_bar() as bar:
        task = bar.add_task(f"Embedding {texts:,} texts", total=len(chunks), rate="")
        for chunk in chunks:
            yield chunk
            bar.advance(task)
