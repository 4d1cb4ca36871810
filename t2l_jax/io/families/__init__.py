"""The families of base models that can be loaded: one file each, and one line here."""

from t2l_jax.io.families import gemma2, gemma3, granite, llama, mistral, olmo2, phi3, qwen2, qwen3, smollm3
from t2l_jax.io.families.family import Family

FAMILIES = (
    llama.FAMILY,
    mistral.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    phi3.FAMILY,
    olmo2.FAMILY,
    smollm3.FAMILY,
    granite.FAMILY,
)
BY_MODEL_TYPE: dict[str, Family] = {family.model_type: family for family in FAMILIES}
BY_ARCHITECTURE: dict[str, Family] = {}
for _family in FAMILIES:
    BY_ARCHITECTURE.setdefault(_family.gguf.architecture, _family)  # the first of those that share one

__all__ = ["BY_ARCHITECTURE", "BY_MODEL_TYPE", "FAMILIES", "Family"]
