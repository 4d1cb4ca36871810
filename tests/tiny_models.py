"""Tiny random models of every supported family, made by transformers, whose special features all show in the logits."""

from pathlib import Path

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
_QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 13, "max_window_layers": 2}
_GEMMA2 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 13,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 20.0,
}

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
}


def save_tiny(family: str, folder: Path) -> transformers.PreTrainedModel:
    """Make a family's model with random weights, save it in the folder as safetensors, and return it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
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
