"""The families of base models that can be loaded: one file each, and one line here."""

from t2l_jax.io.families import gemma2, llama, mistral, qwen2, qwen3
from t2l_jax.io.families.family import Family

FAMILIES = (
    llama.FAMILY,
    mistral.FAMILY,
    gemma2.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
)
BY_MODEL_TYPE: dict[str, Family] = {family.model_type: family for family in FAMILIES}
BY_ARCHITECTURE: dict[str, Family] = {family.gguf.architecture: family for family in FAMILIES if family.gguf}

__all__ = ["BY_ARCHITECTURE", "BY_MODEL_TYPE", "FAMILIES", "Family"]
