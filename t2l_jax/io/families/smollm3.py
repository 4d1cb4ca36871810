"""SmolLM3: Llama whose every fourth layer has no rotary positions."""

from pathlib import Path
from typing import ClassVar, Literal

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.families.family import BiasConfig, Family, Gguf, Heads, LayerTypesConfig, with_layers
from t2l_jax.schema import Count, Several


class SmolLM3Config(LayerTypesConfig, BiasConfig):
    """Which layers have no rotary positions; these have the window, if windows are switched on."""

    default_theta: ClassVar[float] = 2_000_000.0

    num_key_value_heads: Heads | None = 4
    tie_word_embeddings: bool = True
    no_rope_layers: Several[Literal[0, 1]] | None = None  # 0: none, 1: rotary
    no_rope_layer_interval: Count = 4
    use_sliding_window: bool = False

    def rotates(self, layer: int) -> bool:
        """Whether a layer has rotary positions."""
        if self.no_rope_layers is not None:
            return self.no_rope_layers[layer] == 1
        return (layer + 1) % self.no_rope_layer_interval != 0

    @property
    def window(self) -> int | None:
        """The window that is used."""
        return self.sliding_window if self.use_sliding_window else None

    def slides(self, layer: int) -> bool:
        """The layers without rotary positions."""
        return self.window is not None and not self.rotates(layer)

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with rotary positions in the layers that have them."""
        if self.no_rope_layers is not None and len(self.no_rope_layers) < self.num_hidden_layers:
            raise UserError(
                f"{file}: no_rope_layers is a list of {len(self.no_rope_layers)} layers of {self.num_hidden_layers}"
            )
        decoder = super().decoder(file)
        layers = enumerate(decoder.attention.layers)
        return with_layers(decoder, rotary=[layer.rotary if self.rotates(i) else None for i, layer in layers])


FAMILY = Family("smollm3", SmolLM3Config, gguf=Gguf("smollm3", interleaved=True))
