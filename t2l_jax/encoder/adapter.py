"""The LoRA adapter of a text encoder: its PEFT folder, read for our encoder or for a PyTorch model, and written.

Axes: r rank, i input width, o output width.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from t2l_jax.encoder.families import Family
from t2l_jax.encoder.transformer import TransformerConfig
from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.files import atomic_folder
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE, read_weights
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import Adapter

_BEFORE, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class Pair(NamedTuple):
    """A [r, i], and B [o, r] with the scale in it."""

    a: np.ndarray
    b: np.ndarray


def read_pairs(folder: Path, shape: Callable[[str], tuple[int, int] | None]) -> dict[str, Pair]:
    """A and B by the path of the linear module that they change.

    `shape` tells (o, i) of the module at a path, None where there is none. Raises UserError if a file is missing or
    damaged, an option is not supported, or a tensor fits no linear module.
    """
    options, path = AdapterConfig.read(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    tensors: dict[str, np.ndarray] = {}
    for stored, array in read_weights(path).items():
        name = stored.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
        if name in tensors:
            raise UserError(f"{path}: the tensor {name} comes twice, with `.default` and without: keep one of them")
        tensors[name] = array
    places = {name.removeprefix(_BEFORE).removesuffix(_A).removesuffix(_B) for name in tensors}
    if not places or set(tensors) != {_BEFORE + place + side for place in places for side in (_A, _B)}:
        raise UserError(f"{path}: holds something else than an A and a B for each module: only LoRA is supported")
    pairs = {}
    for place in sorted(places):
        a, b = tensors[_BEFORE + place + _A], tensors[_BEFORE + place + _B]
        rank = options.rank(place)
        outputs, inputs = shape(place) or (0, 0)
        if a.shape != (rank, inputs) or b.shape != (outputs, rank):
            raise UserError(f"{path}: {place} is {b.shape} x {a.shape}, which does not fit the encoder")
        if not options.adapts(place):
            raise UserError(f"{path}: adapts {place}, which is none of the target_modules of {CONFIG_FILE}")
        with np.errstate(over="ignore", invalid="ignore"):
            b = np.float32(options.scale(place)) * b
            if not all_finite(b @ a):
                raise UserError(f"{path}: the change of {place} is too large for float32: train the adapter again")
        pairs[place] = Pair(a, b)
    return pairs


def load_adapter(folder: Path, family: Family, config: TransformerConfig) -> Adapter:
    """The adapter of an encoder: of the largest of its ranks, every scale in its B. Raises as `read_pairs` does."""
    widths, parts = config.projection_widths(), _parts(family, config)

    def shape(place: str) -> tuple[int, int] | None:
        if place == "pooler.dense":  # PEFT adapts it where it adapts every `dense`; no embedding comes from it
            return config.width, config.width
        names = [name for name, _ in parts.get(place, ())]
        return (sum(widths[name][1] for name in names), widths[names[0]][0]) if names else None

    pairs = {place: pair for place, pair in read_pairs(folder, shape).items() if place in parts}
    adapted = {name for place in pairs for name, _ in parts[place]} or {"q_proj"}
    rank = max((len(pair.a) for pair in pairs.values()), default=1)
    spec = config.lora_spec(tuple(adapted), rank, float(rank))
    weights = {
        name: {side: np.zeros(shape, np.float32) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    for place, pair in pairs.items():
        first = 0
        for name, layer in parts[place]:
            weights[name]["a"][layer, : len(pair.a)] = pair.a
            weights[name]["b"][layer, :, : len(pair.a)] = pair.b[first : first + widths[name][1]]
            first += widths[name][1]
    return Adapter(jax.tree.map(jnp.asarray, weights), spec)


def save_adapter(folder: Path, adapter: Adapter, family: Family, config: TransformerConfig, base: str) -> None:
    """Write an adapter as a PEFT folder for the encoder at the location `base`, in place of one that is there.

    The scale is in B. Projections that are one tensor in the encoder's files have one pair there, whose rank is the sum
    of theirs: their A one below the other, their B as blocks.
    """
    widths, rank, weights = config.projection_widths(), adapter.spec.rank, jax.device_get(adapter.weights)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for place, parts in _parts(family, config).items():
        adapted = [(name, layer) for name, layer in parts if name in weights]
        if not adapted:
            continue
        ranks[place] = rank * len(adapted)
        b = np.zeros((sum(widths[name][1] for name, _ in parts), ranks[place]), np.float32)
        row = column = 0
        for name, layer in parts:
            rows = slice(row, row := row + widths[name][1])
            if name in weights:
                b[rows, column : column + rank] = np.float32(adapter.spec.scale) * weights[name]["b"][layer]
                column += rank
        tensors[_BEFORE + place + _A] = np.concatenate([weights[name]["a"][layer] for name, layer in adapted])
        tensors[_BEFORE + place + _B] = b
    options = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "target_modules": list(ranks),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": {place: own for place, own in ranks.items() if own != rank},
        "alpha_pattern": {place: own for place, own in ranks.items() if own != rank},
        "bias": "none",
        "inference_mode": True,
    }
    with atomic_folder(folder, replace=True) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(options, indent=2) + "\n")
        (partial / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))


def with_alpha(adapter: Adapter, alpha: float) -> Adapter:
    """The same change of the weights with another alpha: B is divided by what the scale grows."""
    spec = replace(adapter.spec, alpha=alpha)
    ratio = adapter.spec.scale / spec.scale
    return Adapter({name: {"a": pair["a"], "b": ratio * pair["b"]} for name, pair in adapter.weights.items()}, spec)


def _parts(family: Family, config: TransformerConfig) -> dict[str, list[tuple[str, int]]]:
    """By path in PyTorch's model, the (projection, layer) whose outputs are the rows of the module there, in order."""
    parts: dict[str, list[tuple[str, int]]] = {}
    for layer in range(config.num_layers):
        for name in (name for name in family.modules if name in config.projection_widths()):
            parts.setdefault(family.place(name, layer), []).append((name, layer))
    return parts


def add_adapter(model: Any, folder: Path) -> None:
    """Add to the weights of a PyTorch model what the adapter of a folder changes: W += scale * B A.

    Raises as `read_pairs` does, before anything is changed.
    """
    import torch  # here, since importing it takes seconds

    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    shapes = {name: (module.out_features, module.in_features) for name, module in linear.items()}
    pairs = read_pairs(folder, shapes.get)
    with torch.no_grad():
        for place, pair in pairs.items():
            linear[place].weight += torch.from_numpy(pair.b) @ torch.from_numpy(pair.a.copy())
