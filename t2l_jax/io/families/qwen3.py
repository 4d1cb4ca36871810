"""Qwen 3: the windows of Qwen 2, norms of queries and keys, and heads of 128 whatever the width."""

from dataclasses import replace
from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Family, Gguf, Values
from t2l_jax.io.families.qwen2 import GGUF_KEYS, WINDOWS, with_last_windows


def adapt(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """Windows and norms."""
    config = with_last_windows(config, values, file)
    return replace(config, attention=replace(config.attention, qk_norm=True))


FAMILY = Family(
    model_type="qwen3",
    attributes={**WINDOWS, "attention_bias": False, "head_dim": 128},
    adapt=adapt,
    gguf=Gguf("qwen3", GGUF_KEYS),
)
