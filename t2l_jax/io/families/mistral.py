"""Mistral: Llama with a sliding window in every layer. Its GGUF files say that they are Llama's."""

from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Family, Values, with_windows


def adapt(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """One window for all layers, or none."""
    return with_windows(config, (values["sliding_window"],) * config.num_layers)


FAMILY = Family(model_type="mistral", attributes={"sliding_window": 4096}, adapt=adapt)
