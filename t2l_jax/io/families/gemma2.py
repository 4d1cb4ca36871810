"""Gemma 2: a window in every other layer, four norms whose scales have 1 added, soft caps, scaled embeddings."""

import math
from dataclasses import replace
from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import (
    AttentionBiasConfig,
    Family,
    Gguf,
    HeadDim,
    Heads,
    LayerTypesConfig,
    ModuleName,
    with_attention,
)
from t2l_jax.schema import Count, Positive

LAYER_NAMES = {
    "post_attn_norm": ModuleName("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": ModuleName("pre_feedforward_layernorm", "ffn_norm"),
    "post_mlp_norm": ModuleName("post_feedforward_layernorm", "post_ffw_norm"),
}
GGUF_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
DEPTH_27B = 46  # layers of the 27B model


class Gemma2Config(LayerTypesConfig, AttentionBiasConfig):
    """Windows from the first layer on in turn with whole attention; norms, caps and scales."""

    num_key_value_heads: Heads | None = 4
    head_dim: HeadDim | None = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: Positive = 256.0
    sliding_window: Count | None = 4096
    final_logit_softcapping: Positive | None = 30.0
    attn_logit_softcapping: Positive | None = 50.0

    @property
    def activation(self) -> str:
        """`hidden_act` stands in some files, but is not read."""
        return self.hidden_activation

    def slides(self, layer: int) -> bool:
        """Every other layer."""
        return layer % 2 == 0

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with everything that Gemma adds."""
        decoder = with_attention(
            super().decoder(file), scale=self.query_pre_attn_scalar**-0.5, softcap=self.attn_logit_softcapping
        )
        return replace(
            decoder,
            norm_offset=1.0,
            post_norms=True,
            embed_scale=math.sqrt(decoder.width),
            logit_softcap=self.final_logit_softcapping,
        )


def gguf_scale(decoder: DecoderConfig, depth_27b: int) -> DecoderConfig:
    """llama.cpp knows the one model whose scale does not follow from its head width by its depth."""
    attention = decoder.attention
    width = decoder.width // attention.num_heads if decoder.num_layers == depth_27b else attention.head_dim
    return with_attention(decoder, scale=width**-0.5)


FAMILY = Family(
    "gemma2",
    Gemma2Config,
    LAYER_NAMES,
    gguf=Gguf("gemma2", GGUF_KEYS, adapt=lambda decoder: gguf_scale(decoder, DEPTH_27B), offset_in_norms=True),
)
