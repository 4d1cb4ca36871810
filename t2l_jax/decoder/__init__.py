"""The base LLM: the decoder, its attention, text generation, and how its chat template writes prompts."""

from t2l_jax.decoder.model import SHARED, Cache, Decoder, DecoderConfig, Remat, init_cache, logits

__all__ = ["SHARED", "Cache", "Decoder", "DecoderConfig", "Remat", "init_cache", "logits"]
