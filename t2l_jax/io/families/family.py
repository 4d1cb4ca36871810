"""What a family of base models says of itself. Each file beside this one fills it in for one family.

Everything starts from Llama: its config, its decoder, its tensor names. A family states its differences, so nothing
outside a family's own file asks for it by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict, Field

from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention, Rotary
from t2l_jax.decoder.model import Activation
from t2l_jax.errors import UserError
from t2l_jax.io.families.rope import Fraction, Rope, Theta
from t2l_jax.lora import PROJECTIONS
from t2l_jax.schema import Count, Schema, Several, Width, shown

# Far above every model, and small enough that nothing of this size is a burden.
Depth = Annotated[int, Field(ge=1, le=2**12)]
Heads = Annotated[int, Field(ge=1, le=2**12)]
HeadDim = Annotated[int, Field(ge=2, le=2**12, multiple_of=2)]
Epsilon = Annotated[float, Field(ge=0, le=1)]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
SLIDING, FULL = "sliding_attention", "full_attention"


class ModuleName(NamedTuple):
    """What a module of ours is called in a Hugging Face checkpoint and in a GGUF file."""

    hugging_face: str
    gguf: str


TOP_NAMES = {
    "embedding": ModuleName("model.embed_tokens", "token_embd"),
    "final_norm": ModuleName("model.norm", "output_norm"),
    "head": ModuleName("lm_head", "output"),
}
LAYER_NAMES = {
    "attn_norm": ModuleName("input_layernorm", "attn_norm"),
    "mlp_norm": ModuleName("post_attention_layernorm", "ffn_norm"),
    "q_norm": ModuleName("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ModuleName("self_attn.k_norm", "attn_k_norm"),
    **{p.name: ModuleName(f"{p.block}.{p.name}", p.gguf) for p in PROJECTIONS.values()},
}


class Config(Schema):
    """The attributes of a `config.json` that are read for every family, with what their absence means.

    A family's own config adds its attributes, or other defaults, and says what they mean in `decoder`.
    """

    model_config = ConfigDict(extra="allow")
    default_theta: ClassVar[float] = 10_000.0

    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    head_dim: HeadDim | None = None
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: Count | None = None
    original_max_position_embeddings: Count | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: Fraction | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None

    @property
    def activation(self) -> str:
        """The activation, as transformers names it."""
        return self.hidden_act

    @property
    def rope(self) -> Rope:
        """The dictionary that is used: of the two, `rope_scaling`, unless it is empty."""
        if self.rope_scaling is not None and self.rope_scaling.model_fields_set:
            return self.rope_scaling
        return self.rope_parameters or Rope()

    @property
    def original_length(self) -> int | None:
        """The length of the contexts of pre-training, which some rope types need."""
        length = self.original_max_position_embeddings or self.rope.original_max_position_embeddings
        return length or self.max_position_embeddings

    def rotary(self, file: Path) -> Rotary:
        """The rotary positions of every layer."""
        theta = self.rope_theta if "rope_theta" in self.model_fields_set else self.default_theta
        return self.rope.rotary(theta, self.original_length, f"{file}: rope_parameters")

    def rotary_width(self, file: Path) -> int | None:
        """How many channels of a head are rotated; None: all. Those of most families are, whatever the attribute."""
        fraction = self.rope.partial_rotary_factor or self.partial_rotary_factor
        if fraction not in (None, 1):
            raise UserError(f"{file}: partial_rotary_factor = {fraction} is not supported for this model_type")
        return None

    def decoder(self, file: Path) -> DecoderConfig:
        """Llama's decoder of these sizes. Raises UserError that names the file for values that do not go together."""
        heads = self.num_attention_heads
        kv_heads = self.num_key_value_heads or heads
        if heads % kv_heads:
            raise UserError(f"{file}: num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}")
        if self.head_dim is None and self.hidden_size % (2 * heads):
            raise UserError(
                f"{file}: hidden_size = {self.hidden_size} is not an even head width times num_attention_heads = "
                f"{heads}; give head_dim"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"{file}: activation {shown(self.activation)} is not supported; one of {', '.join(ACTIVATIONS)} is"
            )
        return DecoderConfig(
            vocab_size=self.vocab_size,
            width=self.hidden_size,
            num_layers=self.num_hidden_layers,
            mlp_width=self.intermediate_size,
            attention=AttentionConfig(
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=self.head_dim or self.hidden_size // heads,
                layers=(LayerAttention(rotary=self.rotary(file)),) * self.num_hidden_layers,
                rotary_width=self.rotary_width(file),
            ),
            activation=ACTIVATIONS[self.activation],
            norm_eps=self.rms_norm_eps,
            tied_head=self.tie_word_embeddings,
        )


class AttentionBiasConfig(Config):
    """With biases of all projections of the attention where they are asked for."""

    attention_bias: bool = False

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with these biases."""
        return with_attention(super().decoder(file), qkv_bias=self.attention_bias, out_bias=self.attention_bias)


class BiasConfig(AttentionBiasConfig):
    """With biases of the MLP's projections, too."""

    mlp_bias: bool = False

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with these biases."""
        return replace(super().decoder(file), mlp_bias=self.mlp_bias)


class LayerTypesConfig(Config):
    """With a sliding window in some layers, which `layer_types` may name."""

    sliding_window: Count | None = None
    layer_types: Several[Literal["sliding_attention", "full_attention"]] | None = None

    @property
    def window(self) -> int | None:
        """The window that is used."""
        return self.sliding_window

    def slides(self, layer: int) -> bool:
        """Whether a layer has the window where `layer_types` does not say it."""
        raise NotImplementedError

    def types(self, file: Path) -> Sequence[str]:
        """The type of each layer."""
        layers = range(self.num_hidden_layers)
        if self.layer_types is None:
            return [SLIDING if self.slides(layer) else FULL for layer in layers]
        if len(self.layer_types) != len(layers):
            raise UserError(f"{file}: layer_types names {len(self.layer_types)} layers of {len(layers)}")
        return self.layer_types

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the windows."""
        types = self.types(file)
        if self.window is None and SLIDING in types:
            raise UserError(f"{file}: some layers have sliding_attention, but there is no sliding_window")
        windows = [self.window if each == SLIDING else None for each in types]
        return with_layers(super().decoder(file), window=windows)


def with_attention(decoder: DecoderConfig, **changes: Any) -> DecoderConfig:
    """The decoder with changes of its attention."""
    return replace(decoder, attention=replace(decoder.attention, **changes))


def with_layers(decoder: DecoderConfig, **changes: Sequence[Any]) -> DecoderConfig:
    """The decoder with changes of its layers' attention: for each field a sequence of one value a layer."""
    layers = [
        replace(layer, **dict(zip(changes, values, strict=True)))
        for layer, *values in zip(decoder.attention.layers, *changes.values(), strict=True)
    ]
    return with_attention(decoder, layers=tuple(layers))


@dataclass(frozen=True)
class Gguf:
    """A family in the files of llama.cpp.

    Args:
        architecture: its name there.
        keys: key after the architecture's name -> config.json attribute, beside those of every family.
        absent: attributes whose keys may be absent from the file, with what that means where it is not config.json's.
        adapt: what llama.cpp does otherwise or derives from sizes, because the file does not hold it.
        interleaved: the rows of each head of q and k are stored interleaved (2j, 2j + 1), not as halves (j, j + h/2).
        offset_in_norms: the scales of the norms are stored with `norm_offset` added.
        partial_rotary: part of a head's channels may be rotated.
    """

    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[DecoderConfig], DecoderConfig] = lambda decoder: decoder
    interleaved: bool = False
    offset_in_norms: bool = False
    partial_rotary: bool = False


@dataclass(frozen=True)
class Family:
    """One family, by its differences from Llama.

    Args:
        model_type: its name in config.json.
        config: the attributes of its config.json, and what they mean.
        layer_names: modules of a layer that are called otherwise than Llama's. Modules of one name are stored as one
            tensor, one below the other.
        gguf: the family in GGUF files, by its own architecture or by that of an earlier family.
    """

    model_type: str
    config: type[Config]
    layer_names: Mapping[str, ModuleName] = field(default_factory=dict)
    gguf: Gguf = field(kw_only=True)

    @property
    def names(self) -> dict[str, ModuleName]:
        """The names of all modules of a layer."""
        return {**LAYER_NAMES, **self.layer_names}

    def is_fused(self, module: str) -> bool:
        """Whether a module is stored as one tensor with others."""
        names = list(self.names.values())
        return names.count(self.names[module]) > 1
