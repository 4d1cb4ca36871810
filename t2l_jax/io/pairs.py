"""Pairs of A and B from a file, each of one projection in one layer, as one Adapter.

Axes: L layers, r rank, i input width, o output width.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

MOST_PADDED, MOST_PADDED_RATIO = 2**28, 1000  # numbers in memory, and how many for each in the file

Place = tuple[str, int]  # (projection, layer)
Pairs = dict[Place, dict[str, np.ndarray]]  # {"a": [r, i], "b": [o, r]} of each


def assemble(
    pairs: Pairs, alphas: Mapping[Place, float], config: DecoderConfig | None = None, *, rslora: bool = False
) -> Adapter:
    """Stack the layers of all pairs, each with its own rank and alpha, to one float32 Adapter.

    If ranks or alphas differ, pairs are zero-padded to the largest rank, and their scales folded into B. Layers without
    a pair become zeros. Without a `config` of the base model, the number of layers is inferred, and none may be left
    out. Raises UserError if pairs do not fit together, or not the base model.
    """
    shared, spec = _spec(pairs, alphas, config, rslora)
    weights = {
        name: {side: np.zeros(shape, np.float32) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    for (module, layer), pair in pairs.items():
        own, b = len(pair["a"]), pair["b"]
        scale = 1.0 if shared else alphas[module, layer] / (math.sqrt(own) if rslora else own)
        weights[module]["a"][layer, :own] = pair["a"]
        with np.errstate(over="ignore"):
            scaled = b if scale == 1 else b * np.float32(scale)
        if scale != 1 and not all_finite(scaled):
            raise UserError(f"layer {layer}'s {module} is too large for float32 with alpha: check its alpha")
        weights[module]["b"][layer, :, :own] = scaled
    return Adapter(jax.tree.map(jnp.asarray, weights), spec)


def _spec(
    pairs: Pairs, alphas: Mapping[Place, float], config: DecoderConfig | None, rslora: bool
) -> tuple[bool, LoraSpec]:
    """One spec that holds all pairs, and whether it is that of each. Raises UserError if they do not fit together."""
    num_layers = _number_of_layers(pairs) if config is None else config.num_layers
    widths: dict[str, tuple[int, int]] = {}
    for (module, layer), pair in pairs.items():
        width = (pair["a"].shape[1], pair["b"].shape[0])
        if layer >= num_layers:
            raise UserError(f"it adapts layer {layer}, the base model has {num_layers} layers: use its own base model")
        if widths.setdefault(module, width) != width:
            raise UserError(f"layer {layer}'s {module} has other widths than the other layers'")
    ranks = {len(pair["a"]) for pair in pairs.values()}
    rank, alpha = max(ranks), max(alphas.values())
    shared = len(ranks) == len(set(alphas.values())) == 1 and alpha > 0
    spec = LoraSpec(
        modules=tuple(LoraModule(name, *width) for name, width in widths.items()),
        num_layers=num_layers,
        rank=rank,
        alpha=float(alpha if shared else rank),
        rslora=rslora and shared,
    )
    if config is not None:
        config.check_adapter(spec)
    stored = sum(pair["a"].size + pair["b"].size for pair in pairs.values())
    if spec.size > MOST_PADDED and spec.size > MOST_PADDED_RATIO * stored:
        raise UserError(f"has ranks up to {rank}, with which {stored:,} numbers would become {spec.size:,}")
    return shared, spec


def _number_of_layers(pairs: Pairs) -> int:
    """The number of layers where only the tensors tell it. Raises UserError if they leave some out."""
    present = {layer for _, layer in pairs}
    if missing := max(present) + 1 - len(present):
        raise UserError(f"it adapts layer {max(present)}, and {missing} layers below are missing: name its base model")
    return len(present)
