"""GGUF files for tests, written with the gguf package the way llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

# The tiny models that GGUF files hold whole, with what must be changed: llama.cpp derives the scale of Gemma's scores.
IN_GGUF: dict[str, dict[str, Any]] = {
    "llama 2": {},
    "smollm2, tied head": {},
    "llama, linear scaling": {},
    "gemma 2": {"query_pre_attn_scalar": 24},
    "gemma 3": {"query_pre_attn_scalar": 24},
    "qwen 2": {},
    "qwen 3, biases": {},
    "qwen 3, yarn": {},
    "phi 3": {},
    "olmo 2": {},
    "smollm 3": {},
    "granite": {},
}
_FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
}
_PERMUTED = ("llama", "smollm3", "granite")  # llama.cpp rotates neighbouring channels of these


def write_gguf(file: Path, arrays: dict[str, Any], arch: str = "qwen2", **fields: int | float | str) -> None:
    """Write arrays (float32, or stored bytes and their kind) under GGUF names, with metadata of the architecture."""
    writer = gguf.GGUFWriter(file, arch)
    tokens = [f"ö{number}" for number in range(len(arrays.get("token_embd.weight", ())) or 3)]  # transformers counts
    writer.add_string("tokenizer.ggml.model", "none")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * len(tokens))
    for key, value in fields.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{arch}.{key}", value)
    for name, array in arrays.items():
        stored, kind = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(model: Any, file: Path, **extra_arrays: np.ndarray) -> None:
    """A transformers model as a float32 GGUF file: llama's q and k rows interleaved, Gemma's norms one larger."""
    config, arch = model.config, model.config.model_type.removesuffix("_text")
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch), config.num_hidden_layers
    )
    arrays = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy().copy()
        module, kind = name.rsplit(".", 1)
        if arch in _PERMUTED and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array += 1
        arrays[f"{names.get_name(module)}.{kind}"] = array
    values = {key: getattr(config, name, None) for name, key in _FIELDS.items()}
    fields = {key: value for key, value in values.items() if value is not None}
    write_gguf(file, {**arrays, **extra_arrays}, arch, **fields | _rope_fields(config))


def _rope_fields(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    fields = {"rope.freq_base": float(rope["rope_theta"])}
    if "sliding_attention" in config.rope_parameters:
        fields["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    return fields | {
        "rope.dimension_count": width,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
