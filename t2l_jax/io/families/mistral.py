"""Mistral: Llama with a sliding window in every layer. Its GGUF files say that they are Llama's."""

from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Config, Family, Heads, with_layers
from t2l_jax.io.families.llama import GGUF
from t2l_jax.schema import Count


class MistralConfig(Config):
    """One window for all layers, or none."""

    num_key_value_heads: Heads | None = 8
    sliding_window: Count | None = 4096

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the window."""
        return with_layers(super().decoder(file), window=(self.sliding_window,) * self.num_hidden_layers)


FAMILY = Family("mistral", MistralConfig, gguf=GGUF)
