"""Text encoders of sentence-transformers' folders, run in JAX: the BERT family and GTE, with a LoRA adapter or without.

Axes: n texts, d embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32
from tokenizers import Encoding

from t2l_jax.decoder.padding import check_tokens
from t2l_jax.encoder.adapter import load_adapter, save_adapter
from t2l_jax.encoder.batches import token_batches
from t2l_jax.encoder.cache import embed_texts, fingerprint, with_progress
from t2l_jax.encoder.folder import Folder, read_folder
from t2l_jax.encoder.sentence import embed_rows
from t2l_jax.encoder.text import prepare_all, warn_of_cuts
from t2l_jax.encoder.weights import load_dense, load_transformer
from t2l_jax.io.locations import ModelFiles
from t2l_jax.lora import Adapter, merge
from t2l_jax.sharding import make_mesh, place_batch, replicated

ROW_STEP = 16  # of the length of rows that are read in training: texts of other tasks then rarely need another program


@dataclass(frozen=True, eq=False)
class FlaxEncoder:
    """A sentence-transformers folder's encoder as a Flax module in float32: equal to theirs up to rounding.

    `lora` is the adapter of the folder `adapter`, if it has one; `params` are without it. The model reads the beginning
    of a text that is too long for it (MiniLM: 256 tokens), and a warning says so.
    """

    name: str
    path: Path
    folder: Folder
    params: dict[str, Any]
    adapter: Path | None = None
    lora: Adapter | None = None

    @classmethod
    def load(cls, files: ModelFiles, *, adapter: Path | None = None, trust_remote_code: bool = False) -> "FlaxEncoder":
        """Load a model, with an adapter if one is given.

        Raises UserError if files are missing or damaged, and Unsupported for a model that is computed otherwise.
        """
        folder = read_folder(files.path, trust_remote_code)
        transformer = folder.config.transformer
        params = {
            "transformer": load_transformer(folder.path, folder.family, transformer),
            "dense": load_dense(folder.dense, folder.config),
        }
        lora = None if adapter is None else load_adapter(adapter, folder.family, transformer)
        return cls(files.location, files.path, folder, params, adapter, lora)

    @property
    def dim(self) -> int:
        return self.folder.config.dim

    @cached_property
    def fingerprint(self) -> str:
        paths = (self.path,) if self.adapter is None else (self.path, self.adapter)
        # That of the same folder run by sentence-transformers, whose z it shares.
        return fingerprint("sentence-transformers", *paths)

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text; see `Encoder.embed`."""
        prepared = prepare_all(texts)
        z = embed_texts(self, self._encode, prepared, cache)
        warn_of_cuts(self.name, self.folder.max_tokens, prepared, self._are_cut)
        return z

    def token_rows(self, texts: Sequence[str]) -> Int32[np.ndarray, "n S"]:
        """The tokens of each text, -1 after its end, as `z_of_rows` reads them; S is a multiple of ROW_STEP.

        Raises UserError for a text that `prepare` refuses. A warning says which texts are cut.
        """
        prepared = prepare_all(texts)
        tokens = [encoding.ids or [0] for encoding in self._encodings(prepared)]
        longest = max(map(len, tokens), default=1)
        rows = np.full((len(tokens), min(self.folder.max_tokens, -(-longest // ROW_STEP) * ROW_STEP)), -1, np.int32)
        for row, ids in zip(rows, tokens, strict=True):
            row[: len(ids)] = ids
        check_tokens(np.maximum(rows, 0), self.folder.config.transformer.vocab_size)
        warn_of_cuts(self.name, self.folder.max_tokens, prepared, self._are_cut)
        return rows

    def save_adapter(self, folder: Path, adapter: Adapter) -> None:
        """Write an adapter for this encoder as a PEFT folder that names it, in place of one that is there."""
        save_adapter(folder, adapter, self.folder.family, self.folder.config.transformer, self.name)

    @cached_property
    def _mesh(self) -> Mesh:
        """Texts are divided over the devices of this process."""
        return make_mesh(devices=jax.local_devices())

    @cached_property
    def _merged(self) -> dict[str, Any]:
        """The parameters on every device, with the adapter in them, which costs nothing for each text."""
        params = self.params
        if self.lora is not None:
            params = {**params, "transformer": jax.jit(merge)(params["transformer"], self.lora)}
        return jax.device_put(params, replicated(self._mesh))

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        """The texts' tokens. The library takes as many threads as there are processors."""
        return self.folder.tokenizer.encode_batch_fast([self.folder.prompt + text for text in texts])

    def _encode(self, texts: list[str]) -> np.ndarray:
        tokens = [encoding.ids for encoding in self._encodings(texts)]
        embeddings = np.empty((len(texts), self.dim), np.float32)
        config = self.folder.config
        for chosen, padded, lengths in with_progress(
            list(token_batches(tokens, config.transformer.token_flops)), len(texts)
        ):
            check_tokens(padded, config.transformer.vocab_size)
            mask = np.arange(padded.shape[1]) < np.maximum(lengths, 1)[:, None]  # rows that only fill up have one token
            states = embed_rows(config, self._merged, *place_batch(self._mesh, (padded, mask)))
            embeddings[chosen] = np.asarray(states)[: len(chosen)]
        return embeddings

    def _are_cut(self, texts: list[str]) -> list[bool]:
        return [bool(encoding.overflowing) for encoding in self._encodings(texts)]
