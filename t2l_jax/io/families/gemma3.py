"""Gemma 3's text models: five layers with a window and rotary positions of their own, then one with whole attention."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.families.family import FULL, SLIDING, Family, Gguf, with_attention, with_layers
from t2l_jax.io.families.gemma2 import GGUF_KEYS, LAYER_NAMES, Gemma2Config, gguf_scale
from t2l_jax.io.families.rope import Rope, Theta
from t2l_jax.schema import Count, Positive, Schema

DEPTH_27B = 62  # layers of the 27B model


class LayerRopes(Schema):
    """A dictionary of rotary positions for each type of layer."""

    model_config = ConfigDict(extra="allow")

    full_attention: Rope | None = None
    sliding_attention: Rope | None = None


class Gemma3Config(Gemma2Config):
    """The attributes of `model_type` gemma3_text."""

    default_theta: ClassVar[float] = 1_000_000.0

    final_logit_softcapping: Positive | None = None
    attn_logit_softcapping: None = None  # transformers takes it and does not use it
    sliding_window_pattern: Count = 6
    rope_local_base_freq: Theta = 10_000.0
    rope_parameters: LayerRopes | None = None  # type: ignore[assignment]  # one for each type of layer

    @property
    def rope(self) -> Rope:
        """That of the layers with whole attention: `rope_scaling` replaces some of its keys."""
        ropes = self.rope_parameters or LayerRopes()
        both = (ropes.full_attention or Rope(rope_type="default"), self.rope_scaling or Rope())
        keys: dict[str, Any] = {}
        for rope in both:
            keys |= rope.model_dump(exclude_unset=True)
        return Rope(**keys)

    @property
    def original_length(self) -> int | None:
        """The attribute of this name outside the dictionaries is not read."""
        return self.rope.original_max_position_embeddings or self.max_position_embeddings

    def slides(self, layer: int) -> bool:
        """All but every sixth layer."""
        return (layer + 1) % self.sliding_window_pattern != 0

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with norms of queries and keys, and with the rotary positions of each type of layer."""
        decoder = with_attention(super().decoder(file), qk_norm="head")
        local = (self.rope_parameters.sliding_attention if self.rope_parameters else None) or Rope()
        for rope in (self.rope, local):
            if not rope.truncate or rope.partial_rotary_factor not in (None, 1):
                raise UserError(
                    f"{file}: rope_parameters: neither truncate = false nor a partial_rotary_factor below 1 is "
                    "supported for this model_type"
                )
        length = local.original_max_position_embeddings or self.max_position_embeddings
        where = f"{file}: rope_parameters.sliding_attention"
        rotary = {FULL: self.rotary(file), SLIDING: local.rotary(self.rope_local_base_freq, length, where)}
        return with_layers(decoder, rotary=[rotary[each] for each in self.types(file)])


FAMILY = Family(
    "gemma3_text",
    Gemma3Config,
    LAYER_NAMES,
    gguf=Gguf(
        "gemma3",
        {
            **GGUF_KEYS,
            "attention.sliding_window_pattern": "sliding_window_pattern",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        absent={"sliding_window": None},
        adapt=lambda decoder: gguf_scale(decoder, DEPTH_27B),
        offset_in_norms=True,
    ),
)
