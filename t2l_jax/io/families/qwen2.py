"""Qwen 2 and 2.5: biases of q, k and v alone, and windows in the last layers where they are switched on."""

from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Family, Gguf, Heads, LayerTypesConfig, with_attention
from t2l_jax.schema import Count, Index

GGUF_KEYS = {"attention.sliding_window": "sliding_window"}


class LastWindowsConfig(LayerTypesConfig):
    """Windows from layer `max_window_layers` on, if they are switched on."""

    num_key_value_heads: Heads | None = 32
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: Index = 28

    @property
    def window(self) -> int | None:
        """The window that is used."""
        return self.sliding_window if self.use_sliding_window else None

    def slides(self, layer: int) -> bool:
        """The last layers."""
        return self.window is not None and layer >= self.max_window_layers


class Qwen2Config(LastWindowsConfig):
    """With biases, which no attribute mentions."""

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the biases."""
        return with_attention(super().decoder(file), qkv_bias=True)


FAMILY = Family("qwen2", Qwen2Config, gguf=Gguf("qwen2", GGUF_KEYS))
