"""Token ids to a sentence's embedding, as a pure function: transformer, pooling, and what a folder puts after them.

Axes: R rows, S sequence, D width of the transformer, d width of the embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.encoder.transformer import ACTIVATIONS, Transformer, TransformerConfig
from t2l_jax.lora import Adapter

PoolingMode = Literal["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]
DenseActivation = Literal["identity", "tanh", "gelu", "relu", "silu"]
DENSE_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"identity": lambda x: x, "tanh": jnp.tanh, **ACTIVATIONS}


@dataclass(frozen=True)
class Dense:
    """A linear map of the embedding and its activation."""

    d_in: int
    d_out: int
    bias: bool = True
    activation: DenseActivation = "tanh"


@dataclass(frozen=True)
class Normalize:
    """L2 normalisation of the embedding."""


@dataclass(frozen=True)
class SentenceConfig:
    """A sentence encoder: its transformer, the poolings whose results stand side by side, and what follows them."""

    transformer: TransformerConfig
    pooling: tuple[PoolingMode, ...] = ("mean",)
    after: tuple[Dense | Normalize, ...] = ()
    truncate_dim: int | None = None  # of the embedding only so many first entries are kept

    @property
    def dim(self) -> int:
        """The width of the embedding."""
        dense = [module.d_out for module in self.after if isinstance(module, Dense)]
        whole = dense[-1] if dense else len(self.pooling) * self.transformer.width
        return whole if self.truncate_dim is None else min(whole, self.truncate_dim)


def sentence_embedding(
    config: SentenceConfig,
    params: dict[str, Any],
    tokens: Int[Array, "R S"],
    mask: Bool[Array, "R S"],
    adapter: Adapter | None = None,
) -> Float[Array, "R d"]:
    """The embedding of each row; `mask` is True at the tokens of its text, of which it has one at least.

    `params` are the transformer's, and of each dense layer `dense` its kernel and bias.
    """
    states: Any = Transformer(config.transformer).apply({"params": params["transformer"]}, tokens, mask, adapter)
    x = jnp.concatenate([pool(mode, states, mask) for mode in config.pooling], axis=-1)
    dense = iter(params["dense"])
    for module in config.after:
        if isinstance(module, Normalize):
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        else:
            weights = next(dense)
            x = x @ weights["kernel"]
            if module.bias:
                x = x + weights["bias"][None]
            x = DENSE_ACTIVATIONS[module.activation](x)
    return x[:, : config.dim]


embed_rows = jax.jit(sentence_embedding, static_argnums=0)


def z_of_rows(
    config: SentenceConfig, params: dict[str, Any], rows: Int[Array, "R S"], adapter: Adapter | None = None
) -> Float[Array, "R d"]:
    """z of each row of tokens, -1 after its end: the embedding, of length sqrt(d). Pure: jit, grad, vmap it."""
    mask = rows >= 0
    x = sentence_embedding(config, params, jnp.maximum(rows, 0), mask, adapter)
    return x * (math.sqrt(config.dim) / jnp.linalg.norm(x, axis=-1, keepdims=True))


def pool(mode: PoolingMode, states: Float[Array, "R S D"], mask: Bool[Array, "R S"]) -> Float[Array, "R D"]:
    """One state for each row, by one of the poolings of sentence-transformers."""
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[jnp.arange(len(states)), mask.sum(1) - 1]
    if mode == "max":
        return jnp.where(mask[..., None], states, -jnp.inf).max(1)
    weights = mask.astype(states.dtype)
    if mode == "weightedmean":
        weights = weights * jnp.arange(1, mask.shape[1] + 1, dtype=states.dtype)[None]
    total = weights.sum(1, keepdims=True)
    return jnp.einsum("rs,rsd->rd", weights, states) / (jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)
