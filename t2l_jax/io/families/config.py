"""A Hugging Face `config.json` as a DecoderConfig. An attribute that is not understood is an error, never ignored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2l_jax.decoder.attention import AttentionConfig, LayerAttention, Llama3Scaling, Rotary
from t2l_jax.decoder.model import Activation, DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_MODEL_TYPE, Family
from t2l_jax.io.families.family import Values

# Attributes that are read for every family, with what their absence means.
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
# Attributes that do not change what the decoder computes from the same tokens.
_HARMLESS = frozenset({
    "_attn_implementation", "_name_or_path", "architectures", "attention_dropout", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range",
    "is_llama_config", "label2id", "max_position_embeddings", "name_or_path", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "torch_dtype",
    "transformers.js_config", "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def find_family(config: Mapping[str, Any], file: Path) -> Family:
    """The family that a `config.json`'s content names. Raises UserError if it is not supported."""
    model_type = config.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        names = ", ".join(BY_MODEL_TYPE)
        raise UserError(f"{file}: model_type {model_type!r} is not supported; choose a model of {names}")
    return BY_MODEL_TYPE[model_type]


def decoder_config(config: Mapping[str, Any], file: Path) -> DecoderConfig:
    """The decoder that a `config.json`'s content describes; `file` is named in errors.

    Raises UserError for another model type, a missing attribute, and any attribute or value that is not supported.
    """
    family = find_family(config, file)
    known = {**_SHARED, **family.attributes}
    _refuse_unknown(config, {*known, *_REQUIRED}, file)
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}; take the config.json that belongs to the weights")
    values = {**known, **config}
    activation = family.activation(values)
    if activation not in _ACTIVATIONS:
        raise UserError(f"{file}: activation {activation!r} is not supported; one of {', '.join(_ACTIVATIONS)} is")
    decoder = DecoderConfig(
        vocab_size=values["vocab_size"],
        width=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        mlp_width=values["intermediate_size"],
        attention=_attention(values, file),
        activation=_ACTIVATIONS[activation],
        mlp_bias=bool(values.get("mlp_bias")),
        norm_eps=values["rms_norm_eps"],
        tied_head=values["tie_word_embeddings"],
    )
    return family.adapt(decoder, values, file)


def _refuse_unknown(config: Mapping[str, Any], known: set[str], file: Path) -> None:
    for name, value in config.items():
        if name == "sliding_window_size" and value == config.get("sliding_window"):
            continue  # an older name of it, which some published files hold beside the newer one
        # None and False switch a feature off: without it the computation is the one that we know.
        if name not in known and name not in _HARMLESS and value is not None and value is not False:
            raise UserError(
                f"{file}: attribute {name} = {value!r} is not supported for model_type {config['model_type']!r}; "
                "ignoring it could change the results. Remove it only if you know that it has no effect"
            )


def _attention(values: Values, file: Path) -> AttentionConfig:
    heads = values["num_attention_heads"]
    bias = bool(values.get("attention_bias"))
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"] or heads,
        head_dim=values["head_dim"] or values["hidden_size"] // heads,
        layers=(LayerAttention(rotary=_rotary(values, file)),) * values["num_hidden_layers"],
        qkv_bias=bias,
        out_bias=bias,
    )


def _rotary(values: Values, file: Path) -> Rotary:
    """The rotary positions: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
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
        return Rotary(float(theta))
    scaling = Llama3Scaling(
        rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    )
    return Rotary(float(theta), scaling)
