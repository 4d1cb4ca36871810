"""The base LLM: one scanned Flax decoder for the Llama family, with an adapter per task as an ordinary argument.

Axes: B any batch axes (rows; or tasks, rows), S sequence, C cache slots, L layers, D model width, H query heads,
K key/value heads, h head width, V vocabulary.

The layers are one set of parameters stacked on a leading axis, so that compile time does not grow with depth. What
differs between families (windows, norms, scales, rotary positions) is data in `DecoderConfig`, never a subclass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.decoder.attention import LONG_ROW, AttentionConfig, attend, attend_causally, rotary_angles, rotate
from t2l_jax.decoder.cache import SHARED, Cache, note_places, write_cache
from t2l_jax.decoder.cudnn import attend_with_cudnn
from t2l_jax.decoder.dense import GATHERED, PROJECTION, LoraDense
from t2l_jax.decoder.precision import rounded_einsum
from t2l_jax.decoder.splash import attend_with_splash, fits, windows_of
from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS, Adapter, LoraModule, LoraSpec
from t2l_jax.sharding import constrain

Activation = Literal["silu", "gelu_tanh", "gelu"]
Remat = Literal["none", "projections", "layer", "offload"]
Attention = Literal["scores", "splash", "splash-interpreted", "cudnn"]
LayerLora = Mapping[str, Mapping[str, Float[Array, "..."]]]
GLOBAL_WINDOW = 2**30  # wider than any sequence: a layer that sees everything before it


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder of the Llama family. Every field changes the logits."""

    vocab_size: int
    width: int
    num_layers: int
    mlp_width: int
    attention: AttentionConfig
    activation: Activation = "silu"
    mlp_bias: bool = False
    norm_eps: float = 1e-6
    norm_offset: float = 0.0  # added to every norm's scale (Gemma stores scale - 1)
    pre_norms: bool = True  # normalise what attention and MLP read
    post_norms: bool = False  # normalise what they return
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tied_head: bool = True

    def axis_sizes(self) -> dict[str, int]:
        """Logical axis -> the number by which a mesh must divide it: of heads, not of their channels."""
        heads, kv_heads = self.attention.num_heads, self.attention.num_kv_heads
        return {
            "heads": heads,
            "kv_heads": kv_heads,
            "mlp": self.mlp_width,
            "vocab": self.vocab_size,
            "width": self.width,
        }

    def projection_widths(self) -> dict[str, tuple[int, int]]:
        """Projection name -> (input width, output width), in the order of `lora.PROJECTIONS`."""
        sizes = {
            "width": self.width,
            "mlp": self.mlp_width,
            "heads": self.attention.num_heads * self.attention.head_dim,
            "kv_heads": self.attention.num_kv_heads * self.attention.head_dim,
        }
        return {p.name: (sizes[p.axes[0]], sizes[p.axes[1]]) for p in PROJECTIONS.values()}

    def lora_spec(
        self, modules: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 8, alpha: float = 16.0, rslora: bool = True
    ) -> LoraSpec:
        """The spec of an adapter for this decoder."""
        widths = self.projection_widths()
        unknown = [name for name in modules if name not in widths]
        if unknown:
            raise UserError(f"this decoder has no projection {', '.join(unknown)}: choose among {', '.join(widths)}")
        return LoraSpec(
            tuple(LoraModule(name, *widths[name]) for name in modules), self.num_layers, rank, alpha, rslora
        )

    def check_adapter(self, spec: LoraSpec) -> None:
        """Raise UserError if a spec's layers or widths are another model's."""
        widths = self.projection_widths()
        if spec.num_layers != self.num_layers:
            raise UserError(f"the adapter has {spec.num_layers} layers, the base model {self.num_layers}: not its base")
        for module in spec.modules:
            if (module.d_in, module.d_out) != widths[module.name]:
                raise UserError(
                    f"the adapter's {module.name} is {module.d_in} -> {module.d_out}, the base model's "
                    f"{widths[module.name][0]} -> {widths[module.name][1]}: not its base"
                )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 over the last axis."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        scale = self.param("scale", nn.initializers.constant(1 - self.config.norm_offset), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.config.norm_eps)
        scale = jnp.expand_dims(scale.astype(jnp.float32) + self.config.norm_offset, range(x.ndim - 1))
        return (x32 * scale).astype(x.dtype)


class PerLayer(NamedTuple):
    """What differs from layer to layer beside the weights: arrays [L] for the stack, scalars in a layer."""

    layer: Int[Array, "..."]
    window: Int[Array, "..."]
    rotary: Int[Array, "..."]  # which of the angles
    kind: Int[Array, "..."]  # which of `splash.windows_of`
    magnitude: Float[Array, "..."] | None  # of cosines and sines; None: 1 in all layers


class Places(NamedTuple):
    """Where tokens stand: how far from which others, which of these they may see, their angles by rotary setting."""

    distance: Int[Array, "*B S C"] | None  # None: the kernel knows
    visible: Bool[Array, "*B S C"] | None
    angles: Float[Array, "n *B S half"]
    segments: Int[Array, "*B S"]


class Layer(nn.Module):
    """One decoder layer. `lora` is this layer's slice of an adapter: name -> {a: [*T, r, i], b: [*T, o, r]}."""

    config: DecoderConfig
    lora_scale: float
    lora_dropout: float
    train: bool
    matmul_dtype: DTypeLike | None
    long_row: int
    mesh: Mesh | None
    kernel: Attention

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "*B S D"], Cache | None],
        lora: LayerLora,
        own: PerLayer,
        places: Places,
    ) -> tuple[tuple[Float[Array, "*B S D"], Cache | None], None]:
        x, cache = constrain(self.mesh, carry[0], "task"), carry[1]
        out, cache = self.attention(self.norm("attn_norm", x, self.config.pre_norms), cache, lora, own, places)
        x = self.add(x, self.norm("post_attn_norm", out, self.config.post_norms))
        out = self.mlp(self.norm("mlp_norm", x, self.config.pre_norms), lora)
        x = self.add(x, self.norm("post_mlp_norm", out, self.config.post_norms))
        return (x, cache), None

    def norm(self, name: str, x: Float[Array, "*B d"], present: bool) -> Float[Array, "*B d"]:
        """x after the norm of this name; without it x itself."""
        return RMSNorm(self.config, name=name)(x) if present else x

    def add(self, x: Float[Array, "*B S D"], out: Float[Array, "*B S D"]) -> Float[Array, "*B S D"]:
        """The residual stream with a block's output added."""
        scale = self.config.residual_scale
        return x + (out if scale == 1 else jnp.asarray(scale, out.dtype) * out)

    def project(
        self,
        name: str,
        x: Float[Array, "*B S i"],
        dropped: Float[Array, "*B S i"],
        lora: LayerLora,
        use_bias: bool,
    ) -> Float[Array, "*B S o"]:
        """One of the seven projections; `dropped` is x after LoRA dropout."""
        width = self.config.projection_widths()[name][1]
        dense = LoraDense(width, self.lora_scale, use_bias, self.matmul_dtype, self.mesh, name=name)
        return dense(x, dropped, lora.get(name))

    def drop(self, x: Float[Array, "*B S i"]) -> Float[Array, "*B S i"]:
        """LoRA dropout. Projections of one input share its mask and the backward pass keeps it: drawing it is slow."""
        if not self.train or not self.lora_dropout:
            return x
        keep = 1 - self.lora_dropout
        mask = checkpoint_name(jax.random.bernoulli(self.make_rng("dropout"), jnp.float32(keep), x.shape), PROJECTION)
        return jnp.where(mask, x / keep, 0)

    def attention(
        self,
        x: Float[Array, "*B S D"],
        cache: Cache | None,
        lora: LayerLora,
        own: PerLayer,
        places: Places,
    ) -> tuple[Float[Array, "*B S D"], Cache | None]:
        config = self.config.attention
        dropped = self.drop(x)
        q, k, v = (self.project(f"{name}_proj", x, dropped, lora, config.qkv_bias) for name in "qkv")
        q, k = (self.norm(f"{name}_norm", y, config.qk_norm == "projection") for name, y in (("q", q), ("k", k)))
        q = q.reshape(*x.shape[:-1], config.num_heads, -1)
        k, v = (y.reshape(*x.shape[:-1], config.num_kv_heads, -1) for y in (k, v))
        q, k = (self.norm(f"{name}_norm", y, config.qk_norm == "head") for name, y in (("q", q), ("k", k)))
        angles = places.angles[0]
        if len(places.angles) > 1:
            angles = jax.lax.dynamic_index_in_dim(places.angles, own.rotary, keepdims=False)
        q, k = (rotate(y, angles, own.magnitude) for y in (q, k))
        k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
        if places.visible is None or places.distance is None:
            interpret = self.kernel == "splash-interpreted"
            out = attend_with_splash(q, k, v, places.segments, own.kind, config, self.mesh, PROJECTION, interpret)
            return self.project("o_proj", out, self.drop(out), lora, config.out_bias), cache
        mask = places.visible & (places.distance < own.window)
        if cache is None and self.kernel == "cudnn":
            out = attend_with_cudnn(q, k, v, mask, config)
        elif cache is None:
            out = attend_causally(q, k, v, mask, config, self.matmul_dtype, self.long_row)
        else:
            cache, k, v = write_cache(cache, k, v, own.layer)
            out = attend(q, k, v, mask, config, self.matmul_dtype)
        return self.project("o_proj", out, self.drop(out), lora, config.out_bias), cache

    def mlp(self, x: Float[Array, "*B S D"], lora: LayerLora) -> Float[Array, "*B S D"]:
        act = {"silu": nn.silu, "gelu_tanh": nn.gelu, "gelu": lambda h: nn.gelu(h, approximate=False)}
        dropped, use_bias = self.drop(x), self.config.mlp_bias
        gate = act[self.config.activation](self.project("gate_proj", x, dropped, lora, use_bias))
        hidden = gate * self.project("up_proj", x, dropped, lora, use_bias)
        return self.project("down_proj", hidden, self.drop(hidden), lora, use_bias)


class Decoder(nn.Module):
    """Tokens [*B, S] to final hidden states [*B, S, D], and `logits` from hidden states.

    An adapter with batch axes takes them from the first axes of the tokens: an adapter batch [T] with tokens [T, R, S]
    serves R rows of each of T tasks, with tokens [T, S] one row each; an adapter without batch axes serves all rows.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32  # of the activations
    lora_dropout: float = 0.0
    train: bool = False  # dropout on
    matmul_dtype: DTypeLike | None = None  # round the operands of matrix products to this; sums stay float32
    long_row: int = LONG_ROW  # rows of at least this many tokens attend in blocks
    remat: Remat = "projections"  # what the backward pass recomputes: see `remat_policy`
    mesh: Mesh | None = None  # over whose devices tasks and the layers' widths are divided
    attention: Attention = "scores"  # a kernel for TPUs: see `splash`, for GPUs: see `cudnn`

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "*B S"],
        adapter: Adapter | None = None,
        *,
        segments: Int[Array, "*B S"] | None = None,
        positions: Int[Array, "*B S"] | None = None,
        cache: Cache | None = None,
        embed_noise: Float[Array, "*B S D"] | None = None,
    ) -> tuple[Float[Array, "*B S D"], Cache | None]:
        """Final hidden states, and the cache with these tokens in it.

        `segments`: 0 is padding, equal numbers attend to each other, and all of them to segment 1, which holds what
        they begin with (default: all is segment 1). Without a cache no token sees one that stands after it.
        `positions` default to 0, 1, 2, ... `embed_noise` is added to the input embeddings (NEFTune).
        """
        config = self.config
        segments = jnp.ones_like(tokens) if segments is None else segments
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
        embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab_size, config.width))
        table = constrain(self.mesh, embedding, "vocab")
        x = constrain(self.mesh, table[tokens], "task").astype(self.dtype) * jnp.asarray(config.embed_scale, self.dtype)
        if embed_noise is not None:
            x = x + embed_noise.astype(self.dtype)
        if cache is not None:
            cache = note_places(cache, positions, segments)
        distance, visible = None, None
        if cache is not None or not self.attention.startswith("splash") or not fits(tokens.shape[-1]):
            distance, visible = _mask(positions, segments, cache)
        angles, rotary, magnitude = rotary_angles(config.attention, positions)
        different = windows_of(config.attention)
        windows = [GLOBAL_WINDOW if own.window is None else own.window for own in config.attention.layers]
        (x, cache), _ = self._layers(adapter)(
            (x, cache),
            {} if adapter is None else adapter.weights,
            PerLayer(
                jnp.arange(config.num_layers, dtype=jnp.int32),
                jnp.asarray(windows, jnp.int32),
                rotary,
                jnp.asarray([different.index(own.window) for own in config.attention.layers], jnp.int32),
                magnitude,
            ),
            Places(distance, visible, angles, segments),
        )
        if cache is not None:
            cache = replace(cache, slot=cache.slot + tokens.shape[-1])
        if not config.tied_head:
            self.param("head", nn.initializers.normal(0.02), (config.vocab_size, config.width))
        return RMSNorm(config, name="final_norm")(x), cache

    def _layers(self, adapter: Adapter | None) -> nn.Module:
        """The stack of layers as one scanned module: parameters and the adapter's layer axis are scanned over."""
        layer_axis = 0 if adapter is None else len(adapter.batch_shape)
        policy = remat_policy(self.remat, self.mesh)
        layer = Layer if policy is None else nn.remat(Layer, prevent_cse=False, policy=policy)
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(layer_axis, 0, nn.broadcast),
            length=self.config.num_layers,
        )
        scale = 1.0 if adapter is None else adapter.spec.scale
        return scanned(
            self.config,
            scale,
            self.lora_dropout,
            self.train,
            self.matmul_dtype,
            self.long_row,
            self.mesh,
            self.attention,
            name="layers",
        )


def remat_policy(kind: Remat, mesh: Mesh | None) -> Callable[..., Any] | None:
    """What the forward pass keeps of a layer beside its input; None: whatever the backward pass reads.

    none: everything but kernels that were gathered from several devices; projections: what the projections return, and
    masks of dropout; offload: the same, in the host's memory; layer: nothing.
    """
    policies = jax.checkpoint_policies
    if kind == "none":
        return None if mesh is None or mesh.shape["fsdp"] == 1 else policies.save_anything_except_these_names(GATHERED)
    if kind == "layer":
        return policies.nothing_saveable
    if kind == "projections":
        return policies.save_only_these_names(PROJECTION)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PROJECTION],
        offload_src="device",
        offload_dst="pinned_host",
    )


def logits(
    config: DecoderConfig, params: dict[str, Any], hidden: Float[Array, "*B D"], matmul_dtype: DTypeLike | None = None
) -> Float[Array, "*B V"]:
    """Logits over the vocabulary, float32. Apart from the decoder, so that only those that are needed are computed."""
    head = params["embedding"] if config.tied_head else params["head"]
    scores = rounded_einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), matmul_dtype)
    if config.logit_scale != 1:
        scores = config.logit_scale * scores
    if config.logit_softcap is not None:
        scores = config.logit_softcap * jnp.tanh(scores / config.logit_softcap)
    return scores


def _mask(
    positions: Int[Array, "*B S"], segments: Int[Array, "*B S"], cache: Cache | None
) -> tuple[Int[Array, "*B S C"], Bool[Array, "*B S C"]]:
    """How far each token stands from each that it may read, of the row or of the cache; and whether it may."""
    seen = (positions, segments) if cache is None else (cache.positions, cache.segments)
    distance = positions[..., :, None] - seen[0][..., None, :]
    mine, theirs = segments[..., :, None], seen[1][..., None, :]
    visible = (distance >= 0) & (mine > 0) & ((mine == theirs) | (theirs == SHARED))
    return distance, visible if cache is not None else jnp.tril(visible)  # what `attend_causally` relies on
