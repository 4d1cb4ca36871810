"""Tiny random models of every supported family, made by transformers, whose special features all show in the logits."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

LENGTH = 96  # of a test sequence: longer than the windows and than the original length of the rotary scaling
VOCAB = 96
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 5_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_DEEPSEEK_YARN = {"mscale": 1.2, "mscale_all_dim": 0.4, "beta_fast": 12.0, "beta_slow": 2.0, "truncate": False}
_QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 2}
_GEMMA2 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 13,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 20.0,
}
_GEMMA3 = {
    "num_hidden_layers": 7,  # the sixth sees everything
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 13,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
_PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.5,
}
_PAD = {"pad_token_id": 0}

FAMILIES = {
    "llama 2": transformers.LlamaConfig(**_SIZES | {"num_key_value_heads": 4}),
    "llama, biases": transformers.LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True),
    "llama 3.1, rope scaling": transformers.LlamaConfig(**_SIZES, rope_parameters=_LLAMA3, head_dim=24),
    "smollm2, tied head": transformers.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "mistral, window": transformers.MistralConfig(**_SIZES, sliding_window=13),
    "gemma 2": transformers.Gemma2Config(**_SIZES, **_GEMMA2),
    "qwen 2": transformers.Qwen2Config(**_SIZES),
    "qwen 2, windows": transformers.Qwen2Config(**_SIZES, **_QWEN_WINDOWS),
    "qwen 3": transformers.Qwen3Config(**_SIZES, head_dim=24),
    "qwen 3, biases": transformers.Qwen3Config(**_SIZES, head_dim=24, attention_bias=True, tie_word_embeddings=True),
    "llama, linear scaling": transformers.LlamaConfig(
        **_SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 5_000.0, "factor": 4.0}
    ),
    "qwen 3, yarn": transformers.Qwen3Config(**_SIZES, head_dim=24, rope_parameters=_YARN),
    "llama, yarn as deepseek has it": transformers.LlamaConfig(**_SIZES, rope_parameters=_YARN | _DEEPSEEK_YARN),
    "gemma 3": transformers.Gemma3TextConfig(**_SIZES | _GEMMA3),
    "phi 3": transformers.Phi3Config(**_SIZES | _PAD, sliding_window=13, rope_parameters=_PARTIAL),
    "olmo 2": transformers.Olmo2Config(**_SIZES),
    "smollm 3": transformers.SmolLM3Config(**_SIZES | _PAD, rope_parameters={"rope_theta": 500.0}),
    "smollm 3, windows": transformers.SmolLM3Config(**_SIZES | _PAD, use_sliding_window=True, sliding_window=13),
    "granite": transformers.GraniteConfig(**_SIZES, **_GRANITE, attention_bias=True, mlp_bias=True),
}


def save_tiny(family: str, folder: Path, **changes: Any) -> transformers.PreTrainedModel:
    """Make a family's model with random weights, save it in the folder as safetensors, and return it."""
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])
    config.update(changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim == 1:  # a norm's scale or a bias, which start at a constant
                param.add_(0.3 * torch.randn_like(param))
            else:
                gain = 1.0 if "embed" in name or "lm_head" in name else 1.5 * param.shape[1] ** -0.5
                param.copy_(gain * torch.randn_like(param))
    model.save_pretrained(folder)
    return model


def random_tokens(*shape: int) -> torch.Tensor:
    """Token ids of the tiny models."""
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


def torch_logits(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """What transformers computes."""
    with torch.no_grad():
        return model(tokens).logits
