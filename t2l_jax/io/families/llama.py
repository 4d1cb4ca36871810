"""Llama, and every model of its architecture, such as SmolLM2."""

from t2l_jax.io.families.family import Family, Gguf

FAMILY = Family(
    model_type="llama",
    attributes={"attention_bias": False, "mlp_bias": False},
    gguf=Gguf("llama", interleaved=True),
)
