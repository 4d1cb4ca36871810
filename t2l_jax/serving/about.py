"""What there is to say about an adapter: how strong it is where, and how near its description is to trained ones.

Axes: n training tasks, d width of z, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32

from t2l_jax.errors import UserError
from t2l_jax.io.files import cache_folder
from t2l_jax.lora import delta_norms
from t2l_jax.model import Model
from t2l_jax.serving.adapters import Entry
from t2l_jax.serving.engine import Busy

NEAREST = 5
TOGETHER = 128  # descriptions that are embedded between two looks at whether the server closes
ODD = 0.05  # share of the training tasks that would themselves count as far from the other ones


@dataclass(frozen=True)
class Trained:
    """The descriptions of the training tasks, by the cosines of their embeddings."""

    texts: tuple[str, ...]
    directions: Float32[np.ndarray, "n d"]

    @cached_property
    def near(self) -> float:
        """The cosine above which a description counts as near: all but few of the trained ones have one of another."""
        cosines = self.directions @ self.directions.T
        np.fill_diagonal(cosines, -1)
        return float(np.quantile(cosines.max(1), ODD)) if len(self.texts) > 1 else 0.0

    def nearest(self, z: Float32[np.ndarray, " d"]) -> list[tuple[str, float]]:
        """The descriptions nearest to a task embedding, and their cosines."""
        cosines = self.directions @ _unit(z)
        return [(self.texts[index], float(cosines[index])) for index in np.argsort(-cosines)[:NEAREST]]


def norms_of(entry: Entry) -> dict[str, Any]:
    """The Frobenius norms [L] of the adapter's change of each module; JSON has no number above float32's largest."""
    most = np.finfo(np.float32).max
    norms = {name: np.minimum(np.asarray(own), most) for name, own in delta_norms(entry.adapter).items()}
    return {"norms": {name: own.tolist() for name, own in norms.items()}}


class Nearest:
    """Compares descriptions with trained ones, which are embedded for the first and kept on disk. For one thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._trained: Trained | None = None
        self._closed = False

    def close(self) -> None:
        """Embed no more; who waits gets Busy. May be called from any thread."""
        self._closed = True

    def to(self, entry: Entry) -> dict[str, Any]:
        """The trained descriptions nearest to an adapter's, and whether they are near; None where nobody knows."""
        texts = self._model.descriptions.trained
        if entry.description is None or not texts:
            return {"nearest": None, "near": None}
        if self._trained is None:
            parts = [self._embed(texts[start : start + TOGETHER]) for start in range(0, len(texts), TOGETHER)]
            self._trained = Trained(texts, _unit(np.concatenate(parts)))
        found = self._trained.nearest(self._model.encoder.embed([entry.description])[0])
        nearest = [{"description": text, "similarity": round(cosine, 4)} for text, cosine in found]
        return {"nearest": nearest, "near": found[0][1] >= self._trained.near}

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._closed:
            raise Busy
        try:
            return self._model.encoder.embed(texts, cache_folder() / "embeddings")
        except UserError:  # of a disk that is full or that nobody may write to
            return self._model.encoder.embed(texts)


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)
