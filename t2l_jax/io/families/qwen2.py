"""Qwen 2 and 2.5: biases of q, k and v alone, and windows in the last layers where they are switched on."""

from dataclasses import replace
from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Family, Gguf, Values, windows_by_type, with_windows

WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
GGUF_KEYS = {"attention.sliding_window": "sliding_window"}


def with_last_windows(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """Windows from layer `max_window_layers` on."""
    window = values["sliding_window"] if values["use_sliding_window"] else None
    return with_windows(config, windows_by_type(values, window, lambda i: i >= values["max_window_layers"], file))


def adapt(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """Windows, and the biases, which no attribute mentions."""
    config = with_last_windows(config, values, file)
    return replace(config, attention=replace(config.attention, qkv_bias=True))


FAMILY = Family(model_type="qwen2", attributes=WINDOWS, adapt=adapt, gguf=Gguf("qwen2", GGUF_KEYS))
