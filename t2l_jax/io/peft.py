"""Adapters as PEFT folders: `adapter_config.json`, `adapter_model.safetensors`, and the description they came from.

Written, the scale is folded into B and `lora_alpha` is the rank, an integer, so alpha/r is 1. PEFT, vLLM, SGLang and
llama.cpp then read the same delta, whether or not they know rsLoRA, and so do readers (Ollama) that take no fractions.

Read, a folder made elsewhere may have any subset of the projections and layers, and a rank and alpha of its own for
each; an option that would change the forward pass in a way that our decoder does not know is refused by name.

Axes: L layers, r rank, i input width, o output width.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_folder, check_name, os_errors_explained, read_json
from t2l_jax.lora import PROJECTIONS, Adapter, LoraModule, LoraSpec

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
DESCRIPTION_FILE = "description.txt"

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}  # ours -> safetensors'
TENSOR_NAME = re.compile(r"base_model\.model\.(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")

PEFT_DEFAULT = 8  # of both r and lora_alpha
HostWeights = dict[str, dict[str, np.ndarray]]  # an adapter's weights in host memory
Pairs = dict[tuple[str, int], dict[str, np.ndarray]]  # (projection, layer) -> {"a": [r, i], "b": [o, r]}


@dataclass(frozen=True)
class PeftFormat:
    """The files of every adapter of one spec: what they share is computed once, so that thousands are written fast.

    `base_model` is what readers look the base model up by, usually its name on the hub.
    """

    spec: LoraSpec
    base_model: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"adapters are written as float32, bfloat16 or float16, not {self.dtype!r}")

    @cached_property
    def config(self) -> bytes:
        """The text of `adapter_config.json`."""
        options: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_model,
            "target_modules": list(self.spec.names),
            "r": self.spec.rank,
            "lora_alpha": self.spec.rank,
            "use_rslora": False,
            "use_dora": False,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "layers_to_transform": None,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
        }
        return (json.dumps(options, indent=2) + "\n").encode()

    @cached_property
    def header(self) -> bytes:
        """The safetensors header. A layer's tensor is a slice of the stacked array, so the payload is those arrays."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset, itemsize = 0, jnp.dtype(self.dtype).itemsize
        for module, shapes in self.spec.shapes().items():
            for side, (layers, *shape) in shapes.items():
                for layer in range(layers):
                    name = f"base_model.model.{_module_path(layer, module)}.lora_{side.upper()}.weight"
                    end = offset + math.prod(shape) * itemsize
                    entries[name] = {"dtype": DTYPES[self.dtype], "shape": shape, "data_offsets": [offset, end]}
                    offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the payload starts at a multiple of 8
        return len(text).to_bytes(8, "little") + text

    @property
    def num_bytes(self) -> int:
        """The size of every `adapter_model.safetensors` of this format."""
        return len(self.header) + self.spec.size * jnp.dtype(self.dtype).itemsize

    def blocks(self, weights: HostWeights) -> list[bytes | memoryview]:
        """The bytes of one adapter's `adapter_model.safetensors`, in order. Float32 A is not copied."""
        shapes = self.spec.shapes()
        given = {module: {side: array.shape for side, array in sides.items()} for module, sides in weights.items()}
        if given != shapes:
            raise UserError(f"the adapter's weights do not fit its spec: expected {shapes}, got {given}")
        blocks: list[bytes | memoryview] = [self.header]
        for module in self.spec.names:
            a, b = weights[module]["a"], weights[module]["b"]
            for array in (a, b.astype(np.float32) * np.float32(self.spec.scale)):
                block = np.ascontiguousarray(array.astype(jnp.dtype(self.dtype), copy=False))
                blocks.append(block.reshape(-1).view(np.uint8).data)
        return blocks

    def write(self, folder: Path, blocks: Sequence[bytes | memoryview], description: str | None) -> None:
        """Write one adapter's files into a folder that exists; `blocks` come from the method of that name."""
        (folder / CONFIG_FILE).write_bytes(self.config)
        if description is not None:
            (folder / DESCRIPTION_FILE).write_bytes(description.encode())
        with (folder / WEIGHTS_FILE).open("wb") as file:
            file.writelines(blocks)


def save_peft(
    adapter: Adapter,
    folder: str | Path,
    *,
    base_model: str | None = None,
    description: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    dtype: str = "float32",
    replace: bool = False,
) -> None:
    """Write one adapter as a PEFT folder, or a batch [n] of them as `folder/<name>/`, whole or not at all.

    Args:
        adapter: one adapter, or many on one leading axis.
        folder: a new or empty folder.
        base_model: the base model's name for other readers, usually on the hub.
        description: the text that the adapter was made from; for a batch, one for each.
        names: the folders of a batch; default 0000, 0001, ...
        dtype: float32, bfloat16 or float16.
        replace: put the adapters in the place of whatever the folder holds.

    Raises:
        UserError: the folder holds something already, a name is not fit for a folder, or counts differ.
    """
    files = PeftFormat(adapter.spec, base_model, dtype)
    weights: HostWeights = jax.device_get(adapter.weights)
    if not adapter.batch_shape:
        if names is not None or not (description is None or isinstance(description, str)):
            raise UserError("one adapter takes one description and no names: they are for a batch")
        with atomic_folder(folder, replace=replace) as target:
            files.write(target, files.blocks(weights), description)
        return
    if len(adapter.batch_shape) > 1:
        raise UserError(f"adapters are saved from one batch axis, got {adapter.batch_shape}: flatten or index them")
    count = len(adapter)
    names = [f"{index:04d}" for index in range(count)] if names is None else [check_name(name) for name in names]
    descriptions = [description] * count if description is None or isinstance(description, str) else description
    if len(names) != count or len(descriptions) != count or len(set(names)) != count:
        raise UserError(
            f"{count} adapters need as many different names and as many descriptions, got {len(set(names))} and "
            f"{len(descriptions)}"
        )
    with atomic_folder(folder, replace=replace) as target:
        for index, (name, text) in enumerate(zip(names, descriptions, strict=True)):
            (target / name).mkdir()
            files.write(target / name, files.blocks(jax.tree.map(lambda x: x[index], weights)), text)  # noqa: B023


def load_peft(folder: str | Path, config: DecoderConfig | None = None) -> Adapter:
    """Read a PEFT LoRA folder as one float32 Adapter.

    Modules or layers whose rank or alpha differ are brought to one spec exactly: padded with zeros to the largest
    rank, their scale folded into B. Layers without LoRA become zeros. Without a `config` of the base model, the number
    of layers is taken from the tensors.

    Raises:
        UserError: a file is missing or damaged, an option or tensor is not supported, or the base is another.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    options = read_json(path)
    check_options(options, path)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    try:
        return _assemble(options, tensors, config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


# Options that say how the adapter was made or where it sits, and those that are read below.
_DESCRIPTIVE = {
    *("auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    *("runtime_config", "target_modules", "task_type"),
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
}
# The values with which any other option, known or of a later PEFT, does nothing. Other initialisations than these
# also change the base model's weights.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def check_options(options: dict[str, Any], path: Path) -> None:
    """Raise UserError that names the first option that this reader does not honour."""
    if options.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {options.get('peft_type')!r}, only LORA is supported")
    for name, value in options.items():
        if name not in _DESCRIPTIVE and value not in _NEUTRAL.get(name, (None, False, [], {})):
            raise UserError(f"{path}: the option {name} = {json.dumps(value)[:80]} is not supported")
    numbers = {"r": options.get("r", PEFT_DEFAULT), "lora_alpha": options.get("lora_alpha", PEFT_DEFAULT)}
    for pattern in ("rank_pattern", "alpha_pattern"):
        if not isinstance(options.get(pattern) or {}, dict):
            raise UserError(f"{path}: {pattern} is not an object")
        numbers |= {f"{pattern}[{key!r}]": value for key, value in (options.get(pattern) or {}).items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{path}: {name} is {json.dumps(value)[:80]}, expected a number")


def _read_tensors(path: Path) -> Pairs:
    """The file's tensors in float32, every A with its B."""
    if not path.exists() and path.with_suffix(".bin").exists():
        raise UserError(f"{path} is missing and {path.stem}.bin, a pickle, is not read: save it as safetensors")
    with os_errors_explained(path, "read"):
        data = path.read_bytes()
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or cut short ({error}): fetch or make it again") from error
    dtypes = {theirs: jnp.dtype(ours) for ours, theirs in DTYPES.items()}
    pairs: Pairs = {}
    for name, entry in entries:
        match = TENSOR_NAME.fullmatch(name)
        if not match or match[2] not in PROJECTIONS:
            raise UserError(f"{path}: the tensor {name} is not supported: only LoRA on {', '.join(PROJECTIONS)} is")
        if entry["dtype"] not in dtypes or len(entry["shape"]) != 2:
            raise UserError(f"{path}: the tensor {name} is {entry['dtype']} {entry['shape']}, expected a float matrix")
        array = np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
        pairs.setdefault((match[2], int(match[1])), {})[match[3].lower()] = array
    for (module, layer), pair in pairs.items():
        if len(pair) != 2 or pair["a"].shape[0] != pair["b"].shape[1]:
            raise UserError(f"{path}: layer {layer}'s {module} lacks one of A and B, or their ranks differ")
    if not pairs:
        raise UserError(f"{path} holds no tensors")
    return pairs


def _assemble(options: dict[str, Any], pairs: Pairs, config: DecoderConfig | None) -> Adapter:
    """Stack the layers, bringing what differs in rank and alpha to one spec."""
    ranks, alphas = {}, {}
    for (module, layer), pair in pairs.items():
        path = _module_path(layer, module)
        expected = setting(options, "r", "rank_pattern", path)
        ranks[module, layer] = pair["a"].shape[0]
        if ranks[module, layer] != expected:
            raise UserError(f"layer {layer}'s {module} has rank {pair['a'].shape[0]}, {CONFIG_FILE} says {expected}")
        alphas[module, layer] = setting(options, "lora_alpha", "alpha_pattern", path)
    rslora = bool(options.get("use_rslora"))
    rank, alpha = max(ranks.values()), max(alphas.values())
    uniform = len(set(ranks.values())) == len(set(alphas.values())) == 1 and alpha > 0
    widths = {module: (pair["a"].shape[1], pair["b"].shape[0]) for (module, _), pair in pairs.items()}
    spec = LoraSpec(
        modules=tuple(LoraModule(name, *width) for name, width in widths.items()),
        num_layers=max(layer for _, layer in pairs) + 1 if config is None else config.num_layers,
        rank=rank,
        alpha=float(alpha if uniform else rank),
        rslora=rslora and uniform,
    )
    if config is not None:
        config.check_adapter(spec)
    weights = {
        name: {side: np.zeros(shape, np.float32) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    for (module, layer), pair in pairs.items():
        if (pair["a"].shape[1], pair["b"].shape[0]) != widths[module]:
            raise UserError(f"layer {layer}'s {module} has other widths than the other layers'")
        if layer >= spec.num_layers:
            raise UserError(f"it adapts layer {layer}, the base model has {spec.num_layers} layers: not its base")
        own = ranks[module, layer]
        scale = 1.0 if uniform else alphas[module, layer] / (math.sqrt(own) if rslora else own)
        weights[module]["a"][layer, :own] = pair["a"]
        weights[module]["b"][layer, :, :own] = pair["b"] * np.float32(scale)
    return Adapter(jax.tree.map(jnp.asarray, weights), spec)


def setting(options: dict[str, Any], name: str, patterns: str, path: str) -> int | float:
    """The rank or alpha of the module at a path: that of the first pattern that matches the path's end, or the default.

    An end begins at a dot, as PEFT has it.
    """
    for pattern, value in (options.get(patterns) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            raise UserError(
                f"{CONFIG_FILE}: {patterns} holds {pattern!r}, not a regular expression: {error}"
            ) from error
    return options.get(name, PEFT_DEFAULT)


def _module_path(layer: int, module: str) -> str:
    """A projection's place in a transformers model of the Llama family."""
    return f"model.layers.{layer}.{PROJECTIONS[module].block}.{module}"


def digest(folder: Path) -> str:
    """A hash of a PEFT folder's configuration and weights."""
    content = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with os_errors_explained(folder / name, "read"):
            content.update((folder / name).read_bytes())
    return content.hexdigest()
