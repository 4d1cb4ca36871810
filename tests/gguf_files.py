"""GGUF files for tests, written with the gguf package the way llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

_FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def write_gguf(file: Path, arrays: dict[str, Any], arch: str = "qwen2", **fields: int | float) -> None:
    """Write arrays (float32, or stored bytes and their kind) under GGUF names, with metadata of the architecture."""
    writer = gguf.GGUFWriter(file, arch)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "ö"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 3])
    for key, value in fields.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{arch}.{key}", value)
    for name, array in arrays.items():
        stored, kind = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(model: Any, file: Path, **extra_arrays: np.ndarray) -> None:
    """A transformers model as a float32 GGUF file: llama's q and k rows interleaved, Gemma's norms one larger."""
    config, arch = model.config, model.config.model_type
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch), config.num_hidden_layers
    )
    arrays = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy().copy()
        module, kind = name.rsplit(".", 1)
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if arch == "gemma2" and name.endswith("norm.weight"):
            array += 1
        arrays[f"{names.get_name(module)}.{kind}"] = array
    values = {key: getattr(config, name, None) for name, key in _FIELDS.items()}
    fields = {key: value for key, value in values.items() if value is not None}
    fields["rope.freq_base"] = float(config.rope_parameters["rope_theta"])
    write_gguf(file, {**arrays, **extra_arrays}, arch, **fields)
