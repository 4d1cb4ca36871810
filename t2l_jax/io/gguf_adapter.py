"""LoRA adapters as GGUF files: what llama.cpp, and what is built on it, takes by `--lora`.

A projection's A and B are two tensors that are named for its kernel, `blk.0.attn_q.weight.lora_a` [r, i] and `.lora_b`
[o, r]. llama.cpp scales B A by `adapter.lora.alpha` / r and knows no rsLoRA, so the alpha in a file is scale x r. Where
it stores the rows of q and k in another order than Hugging Face (`families.family.Gguf.interleaved`), those of B are
reordered with them.

Axes: L layers, r rank, i input width, o output width.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import gguf
import jax
import numpy as np
from pydantic import Field

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_family
from t2l_jax.io.families import Family
from t2l_jax.io.files import atomic_file, os_errors_explained, read_file, refuse_existing
from t2l_jax.io.gguf import find_gguf_family
from t2l_jax.io.gguf_header import GgufTensor, interleaved, read_index
from t2l_jax.io.locations import HUB_NAME
from t2l_jax.io.pairs import Pairs, Place, assemble
from t2l_jax.io.peft import CONFIG_FILE, DESCRIPTION_FILE, base_model, load_peft
from t2l_jax.io.published import pretrained_models, read_config
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import PROJECTIONS, Adapter
from t2l_jax.schema import Positive, Schema, checked, shown

GgufDtype = Literal["f32", "f16", "bf16", "q8_0"]
_KEYS = gguf.Keys.Adapter
_TENSOR_NAME = re.compile(r"blk\.(?P<layer>0|[1-9]\d{0,8})\.(?P<module>\w+)\.weight\.lora_(?P<side>[ab])")
_DESCRIPTIVE = {_KEYS.TYPE, _KEYS.LORA_ALPHA, _KEYS.LORA_TASK_NAME, _KEYS.LORA_PROMPT_PREFIX}


class _Metadata(Schema):
    type: Annotated[Literal["adapter"], Field(alias="general.type")]
    kind: Annotated[Literal["lora"], Field(alias="adapter.type")]
    alpha: Annotated[Positive, Field(alias="adapter.lora.alpha")]


def export_gguf(folder: Path, out: Path, base: str | None = None, dtype: GgufDtype = "f32") -> str:
    """Write the adapter of a PEFT folder as a GGUF file. Returns llama.cpp's name of the base model's architecture.

    `base` is the location of its base model, of which no weights are read; None: that of the name in the folder.
    Raises UserError if `out` exists, the base model cannot be found, or llama.cpp cannot apply the adapter to it.
    """
    refuse_existing(out, empty_folder=False)
    name = base_model(folder)
    location = _base_location(folder, name) if base is None else base
    try:
        family, config = load_family(location)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(f"{folder}: its base model is not found; give its location as --base ({error})") from error
    text = folder / DESCRIPTION_FILE
    save_gguf_adapter(
        load_peft(folder, config),
        out,
        family,
        config,
        dtype=dtype,
        name=folder.resolve().name,
        base_name=name,
        description=read_file(text).decode(errors="replace") if text.is_file() else None,
    )
    return family.gguf.architecture


def _base_location(folder: Path, name: str | None) -> str:
    """Where the base model that a PEFT folder names is: that of a bundled model, a folder, or on the hub."""
    if not name:
        raise UserError(f"{folder / CONFIG_FILE}: names no base_model_name_or_path; give the base model as --base")
    bundled = {config.base_name: config.base for config in map(read_config, pretrained_models())}
    if name in bundled:
        return bundled[name]
    with os_errors_explained(Path(name), "read"):
        if Path(name).exists():
            return str(Path(name).absolute())
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{folder}: its base model {shown(name)} is not found; give its location as --base")
    return f"hf:{name}"


def save_gguf_adapter(
    adapter: Adapter,
    file: str | Path,
    family: Family,
    config: DecoderConfig,
    *,
    dtype: GgufDtype = "f32",
    name: str | None = None,
    base_name: str | None = None,
    description: str | None = None,
) -> None:
    """Atomically write one adapter as a GGUF file for llama.cpp.

    Args:
        adapter: one adapter.
        file: the file; one that exists is replaced.
        family: the family of the base model.
        config: the base model's decoder.
        dtype: type of the numbers. Rows of q8_0 are of blocks of 32, so what has others, B as a rule, becomes f16.
        name: of the adapter, for people.
        base_name: of the base model, as on the hub.
        description: of what the adapter does.

    Raises:
        UserError: a batch, another base model's adapter, a projection that llama.cpp keeps in one matrix with
            others, or numbers that are too large for the type.
    """
    if adapter.batch_shape:
        raise UserError(f"a GGUF file holds one adapter, got a batch of shape {adapter.batch_shape}: index it first")
    config.check_adapter(adapter.spec)
    for module in adapter.spec.names:
        if family.is_fused(module):
            raise UserError(
                f"llama.cpp keeps {module} of architecture {family.gguf.architecture} in one matrix with others, "
                f"{family.names[module].gguf}, and cannot adapt it alone; adapt o_proj or down_proj"
            )
    with atomic_file(file) as partial:
        writer = gguf.GGUFWriter(partial, family.gguf.architecture)
        try:
            _add_metadata(writer, adapter, name, base_name, description)
            for tensor, array in _named(adapter, family, config):
                writer.add_tensor(tensor, *_stored(array, dtype, tensor))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _add_metadata(
    writer: gguf.GGUFWriter, adapter: Adapter, name: str | None, base_name: str | None, description: str | None
) -> None:
    """The keys that llama.cpp's own converter of adapters writes."""
    writer.add_type(gguf.GGUFType.ADAPTER)
    if name:
        writer.add_name(name)
    if description:
        writer.add_description(description)
        writer.add_string(_KEYS.LORA_TASK_NAME, description)  # llama-server lists it
    if base_name:
        organisation, _, short = base_name.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, short)
        if HUB_NAME.fullmatch(base_name):
            writer.add_base_model_organization(0, organisation)
            writer.add_base_model_repo_url(0, f"https://huggingface.co/{base_name}")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(_KEYS.TYPE, "lora")
    writer.add_float32(_KEYS.LORA_ALPHA, adapter.spec.scale * adapter.spec.rank)


def _named(adapter: Adapter, family: Family, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file, layer by layer."""
    weights: dict[str, dict[str, np.ndarray]] = jax.device_get(adapter.weights)
    for layer in range(adapter.spec.num_layers):
        for module in adapter.spec.names:
            a, b = (weights[module][side][layer].astype(np.float32) for side in "ab")
            if _heads(module, family, config):
                b = interleaved(b, config.attention.head_dim)
            stem = f"blk.{layer}.{family.names[module].gguf}.weight.lora_"
            yield f"{stem}a", np.ascontiguousarray(a)
            yield f"{stem}b", np.ascontiguousarray(b)


def _heads(module: str, family: Family, config: DecoderConfig) -> int:
    """How many heads of interleaved rows a module has in GGUF files; 0: its rows are in Hugging Face's order."""
    heads = {"q_proj": config.attention.num_heads, "k_proj": config.attention.num_kv_heads}
    return heads.get(module, 0) if family.gguf.interleaved else 0


def _stored(array: np.ndarray, dtype: GgufDtype, name: str) -> tuple[np.ndarray, None, gguf.GGMLQuantizationType]:
    """An array as it is stored, the shape that is read off it, and the type."""
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    if array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.F16
    with np.errstate(over="ignore", invalid="ignore"):
        stored = gguf.quants.quantize(array, kind)
        kept = gguf.quants.dequantize(stored, kind)
    if not all_finite(kept):
        raise UserError(f"the weights of {name} are not finite, or too large for {kind.name.lower()}")
    return stored, None, kind


def load_gguf_adapter(file: str | Path, config: DecoderConfig) -> Adapter:
    """Read an adapter from a GGUF file as one float32 Adapter for the base model of this decoder.

    Pairs of different ranks and layers without LoRA are taken as `load_peft` takes them. Raises UserError if the file
    is damaged, no LoRA adapter, or another base model's.
    """
    file = Path(file)
    fields, stored = read_index(file)
    metadata = checked(_Metadata, fields, str(file))
    for key, value in fields.items():
        if key.startswith("adapter.") and key not in _DESCRIPTIVE:
            raise UserError(f"{file}: the key {key} = {shown(value)} is not supported")
    pairs = _read_pairs(stored, find_gguf_family(fields, file), config, file)
    try:
        return assemble(pairs, dict.fromkeys(pairs, metadata.alpha), config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _read_pairs(stored: dict[str, GgufTensor], family: Family, config: DecoderConfig, file: Path) -> Pairs:
    """The tensors in pairs of A and B, in Hugging Face's order of rows. They are read once all their sizes fit."""
    modules = {family.names[name].gguf: name for name in PROJECTIONS if not family.is_fused(name)}
    tensors: dict[Place, dict[str, GgufTensor]] = {}
    for name, tensor in stored.items():
        match = _TENSOR_NAME.fullmatch(name)
        if not match or match["module"] not in modules:
            raise UserError(f"{file}: the tensor {shown(name)} is not supported: only LoRA on {', '.join(modules)} is")
        module = modules[match["module"]]
        heads = _heads(module, family, config) if match["side"] == "b" else 0
        tensors.setdefault((module, int(match["layer"])), {})[match["side"]] = replace(tensor, heads=heads)
    if not tensors:
        raise UserError(f"{file}: holds no tensors")
    for (module, layer), sides in tensors.items():
        a, b = (sides[side].shape if side in sides else () for side in "ab")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(f"{file}: layer {layer}'s {module} lacks one of A and B, or they are no matrices of a rank")
        if (a[1], b[0]) != (widths := config.projection_widths()[module]):
            raise UserError(
                f"{file}: layer {layer}'s {module} is {a[1]} -> {b[0]}, the base model's {widths[0]} -> {widths[1]}: "
                "not its base"
            )
    return {place: {side: _finite(tensor) for side, tensor in sides.items()} for place, sides in tensors.items()}


def _finite(tensor: GgufTensor) -> np.ndarray:
    numbers = tensor.read(0, tensor.shape[0])
    if not all_finite(numbers):
        raise UserError(f"{tensor.file}: tensor {tensor.name} is not finite; download the file or make it again")
    return numbers
