"""The transformer of a text encoder as a pure function: BERT and its relatives, GTE's rotary and gated form included.

Axes: R rows, S sequence, D width, H heads, h head width, L layers.

One set of layer parameters, stacked on a leading axis and scanned over, as in `decoder.model`. Its projections have the
names of `lora.PROJECTIONS`, so that an adapter of an encoder is an `Adapter` like any other. What differs between
families is data in `TransformerConfig`.

Sources: BERT, arXiv 1810.04805; GTE, arXiv 2407.19669.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.decoder.attention import rotate
from t2l_jax.decoder.dense import LoraDense
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
LayerLora = Mapping[str, Mapping[str, Float[Array, "..."]]]
ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}
QUERY_BLOCK = 512  # queries of a long row whose scores are in memory together


@dataclass(frozen=True)
class Learned:
    """A table of `size` learned positions. The first token has row `first`.

    With `blank` (RoBERTa) a token of this id, wherever it stands, is not counted and has row `blank`.
    """

    size: int
    first: int = 0
    blank: int | None = None


@dataclass(frozen=True)
class RotaryPositions:
    """Rotary positions: the base of their frequencies, and the factor of NTK scaling by which GTE stretches them."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True)
class TransformerConfig:
    """A bidirectional transformer whose blocks are normalised after they are added. Every field changes its states."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    positions: Learned | RotaryPositions
    activation: Activation = "gelu"
    gated: bool = False  # the MLP multiplies two projections of its input
    norm_eps: float = 1e-12
    token_types: int = 2  # rows of their table, of which all tokens have the first; 0: no table

    def projection_widths(self) -> dict[str, tuple[int, int]]:
        """Projection name -> (input width, output width), in the order of `lora.PROJECTIONS`."""
        width, mlp = self.width, self.mlp_width
        square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (width, width))
        gate = {"gate_proj": (width, mlp)} if self.gated else {}
        return {**square, **gate, "up_proj": (width, mlp), "down_proj": (mlp, width)}

    @property
    def token_flops(self) -> float:
        """FLOPs of one token in all projections; attention adds little to them in short texts."""
        return 2.0 * self.num_layers * sum(d_in * d_out for d_in, d_out in self.projection_widths().values())

    def lora_spec(self, modules: tuple[str, ...], rank: int, alpha: float, rslora: bool = False) -> LoraSpec:
        """The spec of an adapter for some of the projections of all layers."""
        widths = self.projection_widths()
        return LoraSpec(
            tuple(LoraModule(name, *widths[name]) for name in modules), self.num_layers, rank, alpha, rslora
        )


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with scale and bias."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + self.eps)
        axes = range(x.ndim - 1)
        return normal * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)


class Layer(nn.Module):
    """One layer. `lora` is this layer's slice of an adapter: name -> {a: [r, i], b: [o, r]}."""

    config: TransformerConfig
    lora_scale: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R S D"],
        lora: LayerLora,
        mask: Bool[Array, "R S"],
        angles: Float[Array, "R S half"] | None,
    ) -> tuple[Float[Array, "R S D"], None]:
        config = self.config
        x = LayerNorm(config.norm_eps, name="attn_norm")(x + self.attention(x, lora, mask, angles))
        hidden = self.project("up_proj", x, lora)
        if config.gated:
            hidden = ACTIVATIONS[config.activation](self.project("gate_proj", x, lora)) * hidden
        else:
            hidden = ACTIVATIONS[config.activation](hidden)
        return LayerNorm(config.norm_eps, name="mlp_norm")(x + self.project("down_proj", hidden, lora)), None

    def project(self, name: str, x: Float[Array, "R S i"], lora: LayerLora) -> Float[Array, "R S o"]:
        """One of the projections. Only a gated MLP's inner ones have no bias."""
        use_bias = not (self.config.gated and name in ("gate_proj", "up_proj"))
        width = self.config.projection_widths()[name][1]
        return LoraDense(width, self.lora_scale, use_bias, name=name)(x, x, lora.get(name))

    def attention(
        self,
        x: Float[Array, "R S D"],
        lora: LayerLora,
        mask: Bool[Array, "R S"],
        angles: Float[Array, "R S half"] | None,
    ) -> Float[Array, "R S D"]:
        heads = (*x.shape[:-1], self.config.num_heads, -1)
        q, k, v = (self.project(f"{name}_proj", x, lora).reshape(heads) for name in "qkv")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.project("o_proj", attend(q, k, v, mask).reshape(x.shape), lora)


def attend(
    q: Float[Array, "R S H h"], k: Float[Array, "R S H h"], v: Float[Array, "R S H h"], mask: Bool[Array, "R S"]
) -> Float[Array, "R S H h"]:
    """Attention of all tokens to those of the mask. The queries of a long row go in blocks, one after the other.

    Heads stand before positions, and sums of weights divide what is a head's width wide rather than every weight: with
    rows of 128 tokens that takes a fifth of the time of the softmax as it is written on two CPU cores.
    """
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    hidden = jnp.where(mask, 0.0, jnp.finfo(q.dtype).min)[:, None, None, :]

    def block(q: Float[Array, "R H q h"]) -> Float[Array, "R H q h"]:
        scores = q @ k.swapaxes(-1, -2) + hidden
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        return (weights @ v) / weights.sum(-1, keepdims=True)

    rows, heads, length, width = q.shape
    if length <= QUERY_BLOCK or length % QUERY_BLOCK:
        return block(q).swapaxes(1, 2)
    blocks = jnp.moveaxis(q.reshape(rows, heads, -1, QUERY_BLOCK, width), 2, 0)
    return jnp.moveaxis(jax.lax.map(block, blocks), 0, 2).reshape(q.shape).swapaxes(1, 2)


class Transformer(nn.Module):
    """Tokens [R, S] to their final states [R, S, D]. Rows are padded on the right; `mask` is True at tokens of a text.

    An adapter, without batch axes, serves all rows.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "R S"], mask: Bool[Array, "R S"], adapter: Adapter | None = None
    ) -> Float[Array, "R S D"]:
        config, initial = self.config, nn.initializers.normal(0.02)
        x = self.param("embedding", initial, (config.vocab_size, config.width))[tokens]
        if config.token_types:
            x = x + self.param("token_types", initial, (config.token_types, config.width))[:1, None]
        angles = None
        if isinstance(config.positions, Learned):
            table = self.param("positions", initial, (config.positions.size, config.width))
            x = x + table[learned_rows(config.positions, tokens)]
        else:
            places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.float32), tokens.shape)
            frequencies = rotary_frequencies(config.positions, config.width // config.num_heads)
            angles = places[..., None] * frequencies[None, None]
        x = LayerNorm(config.norm_eps, name="embedding_norm")(x)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )(config, 1.0 if adapter is None else adapter.spec.scale, name="layers")
        states, _ = scanned(x, {} if adapter is None else adapter.weights, mask, angles)
        return states


def learned_rows(positions: Learned, tokens: Int[Array, "R S"]) -> Int[Array, "R S"]:
    """Each token's row of the table of positions."""
    if positions.blank is None:
        return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32) + positions.first, tokens.shape)
    counted = tokens != positions.blank
    before = jnp.cumsum(counted, axis=1, dtype=jnp.int32) - 1 + positions.first
    return jnp.where(counted, before, positions.blank)


def rotary_frequencies(positions: RotaryPositions, width: int) -> Float[Array, " half"]:
    """Radians per position of each pair of a head's channels.

    NTK scaling by f multiplies the base by f and divides every frequency by f^(2/width): the slowest by f in all, and
    the fastest hardly at all.
    """
    powers = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2)
    frequencies = 1.0 / (positions.theta * positions.factor) ** powers
    return frequencies / positions.factor ** (2 / width)


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    params: Any = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, mask)["params"]
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}
