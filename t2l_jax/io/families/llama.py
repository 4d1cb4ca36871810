"""Llama, and every model of its architecture, such as SmolLM2."""

from t2l_jax.io.families.family import BiasConfig, Family, Gguf

GGUF = Gguf("llama", interleaved=True)
FAMILY = Family("llama", BiasConfig, gguf=GGUF)
