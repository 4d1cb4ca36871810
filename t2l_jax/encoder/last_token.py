"""A language model as a text encoder: its final hidden state at a text's last token, by our own decoder.

Axes: n texts, d embedding width, R rows, S sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.padding import check_tokens
from t2l_jax.encoder.batches import token_batches
from t2l_jax.encoder.cache import embed_texts, fingerprint, with_progress
from t2l_jax.encoder.text import prepare_all
from t2l_jax.errors import UserError
from t2l_jax.io.locations import ModelFiles

MAX_TOKENS = 4096
PREFIX = "last-token:"  # before the location of a language model: its last token is the embedding


@dataclass(frozen=True, eq=False)
class LastTokenEncoder:
    """A language model's final hidden state (after the last norm) at a text's last token, by our own decoder."""

    name: str
    path: Path
    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: Any
    adapter: None = None

    @classmethod
    def load(cls, files: ModelFiles, dtype: Any = jnp.float32) -> "LastTokenEncoder":
        """Load a base model's weights and tokenizer. Raises UserError if they cannot be read."""
        from t2l_jax.io.base import load_base, load_tokenizer  # here, since importing it takes a second

        config, params = load_base(files, dtype)
        return cls(PREFIX + files.location, files.path, config, params, load_tokenizer(files))

    @property
    def dim(self) -> int:
        return self.config.width

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("last-token", self.path)

    @cached_property
    def _token_flops(self) -> float:
        return 2.0 * sum(leaf.size for leaf in jax.tree.leaves(self.params["layers"]))

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text; see `Encoder.embed`. A text of more than MAX_TOKENS tokens is a UserError."""
        return embed_texts(self, self._encode, prepare_all(texts), cache)

    def _encode(self, texts: list[str]) -> np.ndarray:
        tokens = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        for index, ids in enumerate(tokens):
            if not 0 < len(ids) <= MAX_TOKENS:
                raise UserError(
                    f"description {index + 1} has {len(ids):,} tokens, not 1 to {MAX_TOKENS:,}: shorten it; it begins "
                    f"{texts[index][:60]!r}"
                )
        embeddings = np.empty((len(texts), self.dim), np.float32)
        for chosen, padded, lengths in with_progress(list(token_batches(tokens, self._token_flops)), len(texts)):
            check_tokens(padded, self.config.vocab_size)
            states = last_token_states(self.config, self.params, jnp.asarray(padded), jnp.asarray(lengths))
            embeddings[chosen] = np.asarray(states, np.float32)[: len(chosen)]
        return embeddings


@partial(jax.jit, static_argnums=0)
def last_token_states(
    config: DecoderConfig, params: dict[str, Any], tokens: Int[Array, "R S"], lengths: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """The final hidden state at each row's last token. Rows are padded on the right."""
    segments = (jnp.arange(tokens.shape[1])[None] < lengths[:, None]).astype(jnp.int32)
    hidden, _ = Decoder(config).apply({"params": params}, tokens, segments=segments)
    return hidden[jnp.arange(len(tokens)), lengths - 1]
