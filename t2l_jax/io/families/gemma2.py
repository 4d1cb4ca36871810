"""Gemma 2: a window in every other layer, four norms whose scales have 1 added, soft caps, scaled embeddings."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import Family, Gguf, ModuleName, Values, windows_by_type, with_windows

DEPTH_27B = 46  # layers of the 27B model


def adapt(config: DecoderConfig, values: Values, file: Path) -> DecoderConfig:
    """Windows from the first layer on in turn with whole attention; norms, caps and scales."""
    config = with_windows(config, windows_by_type(values, values["sliding_window"], lambda i: i % 2 == 0, file))
    attention = replace(
        config.attention, scale=values["query_pre_attn_scalar"] ** -0.5, softcap=values["attn_logit_softcapping"]
    )
    return replace(
        config,
        attention=attention,
        norm_offset=1.0,
        post_norms=True,
        embed_scale=math.sqrt(config.width),
        logit_softcap=values["final_logit_softcapping"],
    )


def gguf_scalar(values: Values) -> dict[str, Any]:
    """llama.cpp knows the one model whose scale does not follow from its head width by its depth."""
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    return {"query_pre_attn_scalar": head_dim if values["num_hidden_layers"] == DEPTH_27B else values["head_dim"]}


FAMILY = Family(
    model_type="gemma2",
    attributes={
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
    adapt=adapt,
    activation=lambda values: values["hidden_activation"] or "gelu_pytorch_tanh",
    layer_names={
        "post_attn_norm": ModuleName("post_attention_layernorm", "post_attention_norm"),
        "mlp_norm": ModuleName("pre_feedforward_layernorm", "ffn_norm"),
        "post_mlp_norm": ModuleName("post_feedforward_layernorm", "post_ffw_norm"),
    },
    gguf=Gguf(
        "gemma2",
        keys={
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        derive=gguf_scalar,
        offset_in_norms=True,
    ),
)
