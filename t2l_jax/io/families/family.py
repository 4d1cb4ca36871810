"""What a family of base models says of itself. Each file beside this one fills it in for one family.

Everything starts from Llama: its decoder, its checkpoint, its tensor names. A family states its differences, so nothing
outside a family's own file asks for it by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS

Values = Mapping[str, Any]  # the attributes of a config.json; those that it lacks, with the family's defaults


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


def unchanged(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """Llama's decoder as it is."""
    return config


@dataclass(frozen=True)
class Gguf:
    """A family in the files of llama.cpp.

    Args:
        architecture: its name there.
        keys: key after the architecture's name -> config.json attribute, beside those of every family.
        derive: attributes that llama.cpp computes from the others, because the file does not hold them.
        interleaved: the rows of each head of q and k are stored interleaved (2j, 2j + 1), not as halves (j, j + h/2).
        offset_in_norms: the scales of the norms are stored with `norm_offset` added.
    """

    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[Values], dict[str, Any]] = lambda values: {}
    interleaved: bool = False
    offset_in_norms: bool = False


@dataclass(frozen=True)
class Family:
    """One family, by its differences from Llama.

    Args:
        model_type: its name in config.json.
        attributes: those of its own in config.json, or with a default of their own, each with what its absence means.
        adapt: Llama's decoder -> the family's, given the values; the file is named in errors.
        activation: what the values say of the activation, as transformers names it.
        layer_names: modules of a layer that are called otherwise than Llama's.
        gguf: the family in GGUF files; None where it has no architecture of its own there.
    """

    model_type: str
    attributes: Mapping[str, Any]
    adapt: Callable[[DecoderConfig, Values, Path], DecoderConfig] = unchanged
    activation: Callable[[Values], Any] = lambda values: values["hidden_act"]
    layer_names: Mapping[str, ModuleName] = field(default_factory=dict)
    gguf: Gguf | None = None

    @property
    def names(self) -> dict[str, ModuleName]:
        """The names of all modules of a layer."""
        return {**LAYER_NAMES, **self.layer_names}


def with_windows(config: DecoderConfig, windows: Sequence[int | None]) -> DecoderConfig:
    """The decoder with these sliding windows, one a layer."""
    layers = config.attention.layers
    windowed = tuple(replace(layer, window=window) for layer, window in zip(layers, windows, strict=True))
    return replace(config, attention=replace(config.attention, layers=windowed))


def windows_by_type(
    values: Values, window: int | None, slides: Callable[[int], bool], file: Path
) -> tuple[int | None, ...]:
    """Each layer's window as `layer_types` says; without it, `window` for the layers whose number `slides`."""
    layers = range(values["num_hidden_layers"])
    types = values["layer_types"]
    if types is None:
        return tuple(window if slides(layer) else None for layer in layers)
    if not set(types) <= {"sliding_attention", "full_attention"} or len(types) != len(layers):
        raise UserError(f"{file}: layer_types must name sliding_attention or full_attention for each layer: {types}")
    if window is None and "sliding_attention" in types:
        raise UserError(f"{file}: layer_types asks for sliding_attention, but there is no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
