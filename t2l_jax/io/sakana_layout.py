"""The layout of the original's state dict, next to ours: one table, read in both directions.

The original is SakanaAI/text-to-lora. Its linear weights are [out, in], ours [in, out]. Its modules stand in an order
of their own (see `sakana.py`); the rows of `layer_type_encoder` follow that order, and so do the keys of the heads.

Axes: L layers, M modules, r rank, D latent width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.lora import LoraModule, LoraSpec

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
TYPES = "layer_type_encoder.0.weight"  # its row i is the module whose head comes i-th
ADAPTERS = {"offset": "AB_offset", "mean": "mean_recon_target", "std": "std_recon_target"}

# Ours -> theirs, whose numbers are places in a Sequential.
_NORM = {"scale": "weight", "bias": "bias"}
_LINEAR = {"kernel": "weight", "bias": "bias"}
_TABLE = {"embedding": "weight"}
_LAYERS = (
    ("task/linear", "task_encoder.mlp.0", _LINEAR),
    ("task/norm", "task_encoder.mlp.1", _NORM),
    ("query/depth", "layer_depth_encoder.0", _TABLE),
    ("query/depth_norm", "layer_depth_encoder.1", _NORM),
    ("query/type", "layer_type_encoder.0", _TABLE),
    ("query/type_norm", "layer_type_encoder.1", _NORM),
    ("query/mixer/up", "mixer.1", _LINEAR),
    ("query/mixer/down", "mixer.4", _LINEAR),
    ("query/mlp1/norm", "mlp1.mlp.0", _NORM),
    ("query/mlp1/up", "mlp1.mlp.1", _LINEAR),
    ("query/mlp1/down", "mlp1.mlp.4", _LINEAR),
    ("query/mlp2/norm", "mlp2.mlp.0", _NORM),
    ("query/mlp2/up", "mlp2.mlp.1", _LINEAR),
    ("query/mlp2/down", "mlp2.mlp.4", _LINEAR),
    ("query/mlp3/norm", "mlp3.0", _NORM),
    ("query/mlp3/up", "mlp3.1", _LINEAR),
    ("query/mlp3/down", "mlp3.4", _LINEAR),
    ("query/row", "pos_emb.0", _TABLE),
    ("query/row_norm", "pos_emb.1", _NORM),
)
_LAST_LAYERS = (("query/side_norm", "out_emb_norm", _NORM),)


@dataclass(frozen=True)
class Entry:
    """Tensors of ours and of theirs that hold the same numbers.

    Of several the numbers follow each other. Where there are none of ours, theirs are zero.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shape: tuple[int, ...]  # of each of theirs
    transposed: bool = False


def layout(net: HypernetConfig, spec: LoraSpec, shapes: Shapes) -> list[Entry]:
    """Every tensor of a checkpoint, in the original's order; `shapes` are those of our tensors."""
    entries = list(_adapters(spec, shapes))
    entries += [_direct(*layer, shapes) for layer in _leaves(_LAYERS, shapes)]
    if net.head != "L":
        sides = tuple(f"out_emb.{name}.{side}" for name in spec.names for side in "AB")
        entries.append(Entry(("params/query/side/embedding",), sides, (net.latent,)))
    entries += [_direct(*layer, shapes) for layer in _leaves(_LAST_LAYERS, shapes)]
    for module in spec.modules:
        entries += _head(module, shapes)
    return entries


def to_ours(entries: Sequence[Entry], theirs: Tensors, shapes: Shapes) -> dict[str, np.ndarray]:
    """Our tensors; `theirs` have been checked, and their modules are in our order."""
    ours = {}
    for entry in entries:
        if not entry.ours:
            continue
        parts = [theirs[key].T if entry.transposed else theirs[key] for key in entry.theirs]
        if len(entry.ours) == len(parts) == 1:
            ours[entry.ours[0]] = parts[0].reshape(shapes[entry.ours[0]])
            continue
        sizes = [math.prod(shapes[name]) for name in entry.ours]
        pieces = np.split(np.concatenate([part.reshape(-1) for part in parts]), np.cumsum(sizes)[:-1])
        ours |= {name: piece.reshape(shapes[name]) for name, piece in zip(entry.ours, pieces, strict=True)}
    return ours


def to_theirs(entries: Sequence[Entry], ours: Tensors) -> dict[str, np.ndarray]:
    """The original's tensors, in its order."""
    theirs: dict[str, np.ndarray] = {}
    for entry in entries:
        if not entry.ours:
            theirs |= {key: np.zeros(entry.shape, np.float32) for key in entry.theirs}
            continue
        parts = [ours[name].T if entry.transposed else ours[name] for name in entry.ours]
        if len(entry.theirs) == len(parts) == 1:
            theirs[entry.theirs[0]] = parts[0].reshape(entry.shape)
            continue
        pieces = np.split(np.concatenate([part.reshape(-1) for part in parts]), len(entry.theirs))
        theirs |= {key: piece.reshape(entry.shape) for key, piece in zip(entry.theirs, pieces, strict=True)}
    return theirs


def check(entries: Sequence[Entry], theirs: Tensors, where: str) -> None:
    """Raise UserError for the first tensor that is missing, unknown or of another shape."""
    wanted = {key: entry.shape for entry in entries for key in entry.theirs}
    for key in [*wanted, *theirs]:
        found = theirs[key].shape if key in theirs else "missing"
        if found != wanted.get(key):
            needs = f"be {wanted[key]}" if key in wanted else "not be there"
            raise UserError(
                f"{where}: tensor {key:.100} is {found}; by args.yaml and its other tensors it must {needs}"
            )


def _adapters(spec: LoraSpec, shapes: Shapes) -> Iterator[Entry]:
    """Offset, mean and deviation: always there, sorted by name."""
    for ours, theirs in ADAPTERS.items():
        for side in "ab":
            for module in sorted(spec.names):
                names = [f"{group}/{ours}/{module}/{side}" for group in ("params", "constants")]
                found = tuple(name for name in names if name in shapes)
                yield Entry(found, (f"{theirs}.{side.upper()}.{module}",), spec.shapes()[module][side])


def _leaves(layers: Sequence[tuple[str, str, dict[str, str]]], shapes: Shapes) -> Iterator[tuple[str, str, bool]]:
    """Name of ours, of theirs, and whether it is transposed, of each tensor of the layers that this variant has."""
    for ours, theirs, leaves in layers:
        for leaf, name in leaves.items():
            if f"params/{ours}/{leaf}" in shapes:
                yield f"params/{ours}/{leaf}", f"{theirs}.{name}", leaf == "kernel"


def _direct(ours: str, theirs: str, transposed: bool, shapes: Shapes) -> Entry:
    shape = shapes[ours][::-1] if transposed else shapes[ours]
    return Entry((ours,), (theirs,), shape, transposed)


def _head(module: LoraModule, shapes: Shapes) -> Iterator[Entry]:
    """The head of a module. In L its bias is A's, then B's; in M and S one for both."""
    head = f"params/head_{module.name}"
    yield _direct(f"{head}/kernel", f"heads.{module.name}.weight", True, shapes)
    biases = tuple(f"{head}/{name}" for name in ("bias_a", "bias_b", "bias") if f"{head}/{name}" in shapes)
    if biases:
        width = shapes[f"{head}/kernel"][1]
        yield Entry(biases, (f"heads.{module.name}.bias",), (width,))
