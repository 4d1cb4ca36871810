"""Adapters as PEFT folders: `adapter_config.json`, `adapter_model.safetensors`, a model card, and the description.

When writing, the scale is folded into B and `lora_alpha` is set to the rank, an integer, so alpha/r is 1. PEFT, vLLM,
SGLang and llama.cpp then read the same delta with or without support for rsLoRA, as do readers (Ollama) that accept
only integers.

When reading, a folder may adapt any subset of the projections and layers, each with its own rank and alpha. An option
that changes the forward pass in a way that our decoder does not support raises a UserError that names it.

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

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.cards import CARD_FILE, AdapterCard
from t2l_jax.io.files import atomic_folder, check_name, os_errors_explained, read_file
from t2l_jax.io.pairs import Pairs, Place, assemble
from t2l_jax.io.safetensors_header import load_float32
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import PROJECTIONS, Adapter, LoraSpec

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
DESCRIPTION_FILE = "description.txt"

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # NumPy name -> safetensors name
# As PEFT names them; what it holds in memory, and some save, has the adapter's name, too. `layers.01` is no layer.
TENSOR_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>0|[1-9]\d{0,8})\.(?P<block>self_attn|mlp)\.(?P<module>\w+)"
    r"\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)
PLACES = ", ".join(f"{projection.block}.{name}" for name, projection in PROJECTIONS.items())

HostWeights = dict[str, dict[str, np.ndarray]]  # an adapter's weights in host memory


@dataclass(frozen=True)
class PeftFormat:
    """The file format of all adapters of one spec. Shared parts are computed once, to write thousands quickly.

    `base_model` is the name by which readers find the base model, usually on the hub.
    """

    spec: LoraSpec
    base_model: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
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

    @cached_property
    def card(self) -> AdapterCard:
        """What the adapters' README.md says."""
        return AdapterCard(self.spec, self.base_model)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of an `adapter_model.safetensors` of this format."""
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
            with np.errstate(over="ignore"):
                scaled = b.astype(np.float32) * np.float32(self.spec.scale)
                arrays = [array.astype(jnp.dtype(self.dtype), copy=False) for array in (a, scaled)]
            for array in arrays:
                if not all_finite(array):
                    raise UserError(f"the weights of {module} are not finite, or too large for {self.dtype}")
                block = np.ascontiguousarray(array)
                blocks.append(block.reshape(-1).view(np.uint8).data)
        return blocks

    def write(self, folder: Path, blocks: Sequence[bytes | memoryview], description: str | None) -> None:
        """Write one adapter's files into an existing folder; `blocks` is the result of `self.blocks`."""
        (folder / CONFIG_FILE).write_bytes(self.config)
        (folder / CARD_FILE).write_bytes(self.card.text(description).encode())
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
    """Atomically write one adapter as a PEFT folder, or a batch [n] of them as `folder/<name>/`.

    Args:
        adapter: one adapter, or many on one leading axis.
        folder: a new or empty folder.
        base_model: name of the base model for other readers, usually on the hub.
        description: the text that the adapter was generated from; for a batch, one per adapter.
        names: folder names for a batch; default 0000, 0001, ...
        dtype: float32, bfloat16 or float16.
        replace: replace the contents of an existing folder.

    Raises:
        UserError: the folder is not empty, a name is unsafe as a folder name, or counts differ.
    """
    files = PeftFormat(adapter.spec, base_model, dtype)
    weights: HostWeights = jax.device_get(adapter.weights)
    if not adapter.batch_shape:
        if names is not None or not (description is None or isinstance(description, str)):
            raise UserError("one adapter takes one description and no names: pass lists only with a batch")
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
            f"{count} adapters need {count} different names and {count} descriptions, got {len(set(names))} and "
            f"{len(descriptions)}"
        )
    with atomic_folder(folder, replace=replace) as target:
        for index, (name, text) in enumerate(zip(names, descriptions, strict=True)):
            (target / name).mkdir()
            files.write(target / name, files.blocks(jax.tree.map(lambda x: x[index], weights)), text)  # noqa: B023


def load_peft(folder: str | Path, config: DecoderConfig | None = None, *, most_rank: int | None = None) -> Adapter:
    """Read a PEFT LoRA folder as one float32 Adapter.

    Modules and layers of different rank or alpha are converted exactly to one spec: zero-padded to the largest rank,
    with their scale folded into B. Layers without LoRA become zeros. Without a `config` of the base model, the number
    of layers is inferred from the tensors, which must then leave none out. A rank above `most_rank` is refused before
    memory is taken for it.

    Raises:
        UserError: a file is missing or damaged, an option or tensor is unsupported, or the base model does not fit.
    """
    folder = Path(folder)
    options = AdapterConfig.read(folder / CONFIG_FILE)
    pairs = _read_pairs(folder / WEIGHTS_FILE)
    try:
        rank = max(len(pair["a"]) for pair in pairs.values())
        if most_rank is not None and rank > most_rank:
            raise UserError(f"its rank is {rank}, and at most {most_rank} is read here: compress it")
        return assemble(pairs, _alphas(options, pairs), config, rslora=bool(options.options.use_rslora))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def base_model(folder: str | Path) -> str | None:
    """The base model that a PEFT folder names, if it names one. Raises UserError as `load_peft` does."""
    return AdapterConfig.read(Path(folder) / CONFIG_FILE).options.base_model_name_or_path


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file in float32. Raises UserError for one that is damaged or not finite."""
    with os_errors_explained(path, "read"):
        if not path.exists() and path.with_suffix(".bin").exists():
            raise UserError(f"{path} is missing and {path.stem}.bin, a pickle, is not read: save it as safetensors")
    return load_float32(path)


def _read_pairs(path: Path) -> Pairs:
    """The file's tensors in pairs of A and B."""
    pairs: Pairs = {}
    for name, array in read_weights(path).items():
        match = TENSOR_NAME.fullmatch(name)
        if not match or match["module"] not in PROJECTIONS or PROJECTIONS[match["module"]].block != match["block"]:
            raise UserError(f"{path}: the tensor {name[:200]!r} is not supported: only LoRA on {PLACES} is")
        if array.ndim != 2:
            raise UserError(f"{path}: the tensor {name} is {list(array.shape)}, expected a matrix")
        pair = pairs.setdefault((match["module"], int(match["layer"])), {})
        if match["side"].lower() in pair:
            raise UserError(f"{path}: the tensor {name} comes twice, with `.default` and without: keep one of them")
        pair[match["side"].lower()] = array
    for (module, layer), pair in pairs.items():
        if len(pair) != 2 or pair["a"].shape[0] != pair["b"].shape[1]:
            raise UserError(f"{path}: layer {layer}'s {module} lacks one of A and B, or their ranks differ")
    if not pairs:
        raise UserError(f"{path} holds no tensors")
    return pairs


def _alphas(options: AdapterConfig, pairs: Pairs) -> dict[Place, float]:
    """The alpha of each pair. Raises UserError if the configuration is not that of the pairs."""
    alphas = {}
    for (module, layer), pair in pairs.items():
        path, rank = _module_path(layer, module), len(pair["a"])
        if not options.adapts(path):
            raise UserError(
                f"{WEIGHTS_FILE} adapts {path}, {CONFIG_FILE} does not (target_modules, exclude_modules and "
                "layers_to_transform): one of them is another adapter's"
            )
        if rank != options.rank(path):
            raise UserError(f"layer {layer}'s {module} has rank {rank}, {CONFIG_FILE} says {options.rank(path)}")
        alphas[module, layer] = options.alpha(path)
    return alphas


def _module_path(layer: int, module: str) -> str:
    """A projection's module path in a transformers model of the Llama family."""
    return f"model.layers.{layer}.{PROJECTIONS[module].block}.{module}"


def digest(folder: Path) -> str:
    """A hash of a PEFT folder's configuration and weights."""
    content = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content.update(read_file(folder / name))
    return content.hexdigest()
