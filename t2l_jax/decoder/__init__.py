"""The base LLM: the decoder, its attention, text generation, and how its chat template writes prompts."""

from t2l_jax.decoder.cache import SHARED, Cache, init_cache
from t2l_jax.decoder.model import Attention, Decoder, DecoderConfig, Remat, logits

__all__ = ["SHARED", "Attention", "Cache", "Decoder", "DecoderConfig", "Remat", "init_cache", "logits"]
