"""Granite: Llama with four scales, of embeddings, of scores, of what a block adds, and of logits."""

from dataclasses import replace
from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import BiasConfig, Family, Gguf, with_attention
from t2l_jax.schema import Positive


class GraniteConfig(BiasConfig):
    """The scales, each 1 if absent."""

    embedding_multiplier: Positive = 1.0
    attention_multiplier: Positive = 1.0
    residual_multiplier: Positive = 1.0
    logits_scaling: Positive = 1.0

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the scales."""
        return replace(
            with_attention(super().decoder(file), scale=self.attention_multiplier),
            embed_scale=self.embedding_multiplier,
            residual_scale=self.residual_multiplier,
            logit_scale=1 / self.logits_scaling,
        )


FAMILY = Family(
    "granite",
    GraniteConfig,
    gguf=Gguf(
        "granite",
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        absent={"attention_multiplier": None},  # refused: llama.cpp then takes another scale than Granite's
        interleaved=True,
    ),
)
