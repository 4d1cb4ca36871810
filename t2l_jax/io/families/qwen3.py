"""Qwen 3: the windows of Qwen 2, norms of queries and keys, and heads of 128 whatever the width."""

from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import AttentionBiasConfig, Family, Gguf, HeadDim, with_attention
from t2l_jax.io.families.qwen2 import GGUF_KEYS, LastWindowsConfig


class Qwen3Config(LastWindowsConfig, AttentionBiasConfig):
    """Windows, biases and norms."""

    head_dim: HeadDim | None = 128

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the norms."""
        return with_attention(super().decoder(file), qk_norm="head")


FAMILY = Family("qwen3", Qwen3Config, gguf=Gguf("qwen3", GGUF_KEYS))
