"""A Hugging Face `config.json` as a DecoderConfig. An attribute that is not understood is an error, never ignored."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2l_jax.decoder.attention import AttentionConfig, Llama3Scaling
from t2l_jax.decoder.model import Activation, DecoderConfig
from t2l_jax.errors import UserError

# Attributes that are read for every family, and those of one family with what their absence means.
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SHARED = {
    "model_type": None,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": 4096},
    "gemma2": {
        "attention_bias": False,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "qwen2": _WINDOWS,
    "qwen3": {**_WINDOWS, "attention_bias": False, "head_dim": 128},
}
# Attributes that do not change what the decoder computes from the same tokens.
_HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "max_position_embeddings",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def decoder_config(config: Mapping[str, Any], file: Path) -> DecoderConfig:
    """The decoder that a `config.json`'s content describes; `file` is named in errors.

    Raises UserError for another model type, a missing attribute, and any attribute or value that is not supported.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise UserError(f"{file}: model_type {family!r} is not supported; choose a model of {', '.join(_FAMILIES)}")
    known = {**_SHARED, **_FAMILIES[family]}
    _refuse_unknown(config, {*known, *_REQUIRED}, file)
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}; take the config.json that belongs to the weights")
    values = {**known, **config}
    gemma = family == "gemma2"
    activation = values["hidden_activation"] or "gelu_pytorch_tanh" if gemma else values["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise UserError(f"{file}: activation {activation!r} is not supported; one of {', '.join(_ACTIVATIONS)} is")
    return DecoderConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        mlp_width=values["intermediate_size"],
        attention=_attention(family, values, file),
        activation=_ACTIVATIONS[activation],
        mlp_bias=bool(values.get("mlp_bias")),
        norm_eps=values["rms_norm_eps"],
        norm_offset=1.0 if gemma else 0.0,
        post_norms=gemma,
        embed_scale=math.sqrt(values["hidden_size"]) if gemma else 1.0,
        logit_softcap=values.get("final_logit_softcapping"),
        tied_head=values["tie_word_embeddings"],
    )


def _refuse_unknown(config: Mapping[str, Any], known: set[str], file: Path) -> None:
    for name, value in config.items():
        if name == "sliding_window_size" and value == config.get("sliding_window"):
            continue  # Gemma 2's older name, which some published files hold beside the newer one
        # None and False switch a feature off: without it the computation is the one that we know.
        if name not in known and name not in _HARMLESS and value is not None and value is not False:
            raise UserError(
                f"{file}: attribute {name} = {value!r} is not supported for model_type {config['model_type']!r}; "
                "ignoring it could change the results. Remove it only if you know that it has no effect"
            )


def _attention(family: str, values: Mapping[str, Any], file: Path) -> AttentionConfig:
    heads = values["num_attention_heads"]
    bias = bool(values.get("attention_bias"))
    theta, scaling = _rope(values, file)
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"] or heads,
        head_dim=values["head_dim"] or values["hidden_size"] // heads,
        windows=_windows(family, values, file),
        rope_theta=theta,
        rope_scaling=scaling,
        scale=values["query_pre_attn_scalar"] ** -0.5 if family == "gemma2" else None,
        softcap=values.get("attn_logit_softcapping"),
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        qk_norm=family == "qwen3",
    )


def _windows(family: str, values: Mapping[str, Any], file: Path) -> tuple[int | None, ...]:
    """Each layer's sliding window."""
    layers = range(values["num_hidden_layers"])
    window = values.get("sliding_window")
    if family == "llama" or (family in ("qwen2", "qwen3") and not values["use_sliding_window"]):
        window = None
    types = values.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"sliding_attention", "full_attention"})
        if unknown or len(types) != len(layers):
            raise UserError(
                f"{file}: layer_types must name sliding_attention or full_attention for each layer: {types}"
            )
        if window is None and "sliding_attention" in types:
            raise UserError(f"{file}: layer_types asks for sliding_attention, but there is no sliding_window")
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if family == "gemma2":
        return tuple(window if layer % 2 == 0 else None for layer in layers)
    if family in ("qwen2", "qwen3"):
        return tuple(window if layer >= values["max_window_layers"] else None for layer in layers)
    return (window,) * len(layers)


def _rope(values: Mapping[str, Any], file: Path) -> tuple[float, Llama3Scaling | None]:
    """Base and scaling of the rotary positions: `rope_parameters` (transformers 5), or `rope_theta`, `rope_scaling`."""
    rope = dict(values["rope_parameters"] or values["rope_scaling"] or {})
    theta = rope.pop("rope_theta", values["rope_theta"])
    older = rope.pop("type", "default")
    kind = rope.pop("rope_type", older)
    if kind == "default":
        expected = set()
    elif kind == "llama3":
        expected = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    else:
        raise UserError(f"{file}: rope type {kind!r} is not supported; 'default' and 'llama3' are")
    if set(rope) != expected:
        raise UserError(f"{file}: rope type {kind!r} needs {sorted(expected)}, got {sorted(rope)}")
    if not expected:
        return float(theta), None
    return float(theta), Llama3Scaling(
        rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    )
