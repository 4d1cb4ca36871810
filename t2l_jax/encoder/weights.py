"""The parameters of a transformer from the files of its folder.

Axes: L layers, i input width, o output width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from t2l_jax.encoder.families import UNREAD, Family, Unsupported
from t2l_jax.encoder.sentence import Dense, SentenceConfig
from t2l_jax.encoder.transformer import TransformerConfig, parameter_shapes
from t2l_jax.errors import UserError
from t2l_jax.io.readers import weight_files
from t2l_jax.io.safetensors_header import safetensors_tensors
from t2l_jax.io.tensor import PlainTensor, all_finite
from t2l_jax.schema import shown


def load_transformer(path: Path, family: Family, config: TransformerConfig) -> dict[str, Any]:
    """The parameters in float32. Files and config must match one to one.

    Raises UserError if files are missing, damaged or hold numbers that are not finite, and Unsupported for tensors of
    which this architecture knows nothing.
    """
    stored, shapes = _stored(path, family), parameter_shapes(config)
    needed = {name for parameter, shape in shapes.items() for name in _names(family, parameter, shape)}
    if unknown := sorted(set(stored) - needed):
        raise Unsupported(f"the tensor {shown(unknown[0])}")
    if missing := sorted(needed - set(stored)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{path}: the weights lack {', '.join(missing[:3])}{more}; download the model again")
    _check_shapes(stored, family, shapes)
    params = {}
    for parameter, shape in shapes.items():
        names, part = _names(family, parameter, shape), _part(family, parameter, shapes)
        read = [_read(stored[name], part, parameter.endswith("/kernel")) for name in names]
        params[parameter] = jnp.asarray(np.stack(read) if parameter.startswith("layers/") else read[0])
    return unflatten_dict(params, sep="/")


def _stored(path: Path, family: Family) -> dict[str, PlainTensor]:
    stored: dict[str, PlainTensor] = {}
    for file in weight_files(path):
        if file.suffix != ".safetensors":
            raise Unsupported(f"weights as {file.name}")
        for tensor in safetensors_tensors(
            file, unread=lambda name: name.removeprefix(family.prefix).startswith(UNREAD)
        ):
            name = tensor.name.removeprefix(family.prefix)
            if name in stored:
                raise UserError(f"{file}: the tensor {name} comes twice; keep one of them")
            stored[name] = tensor
    return stored


def _names(family: Family, parameter: str, shape: tuple[int, ...]) -> list[str]:
    """The tensors that hold a parameter: one, or one for each layer."""
    if not parameter.startswith("layers/"):
        module, _, leaf = parameter.partition("/")
        return [f"{family.top[module]}.{'bias' if leaf == 'bias' else 'weight'}"]
    _, module, leaf = parameter.split("/")
    suffix = "bias" if leaf == "bias" else "weight"
    return [f"{family.place(module, layer)}.{suffix}" for layer in range(shape[0])]


def _shared(family: Family, parameter: str) -> Iterator[str]:
    """The parameters that one tensor holds, one below the other, this one among them."""
    if not parameter.startswith("layers/"):
        yield parameter
        return
    _, module, leaf = parameter.split("/")
    for other, name in family.modules.items():
        if name == family.modules[module]:
            yield f"layers/{other}/{leaf}"


def _rows(parameter: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many rows a parameter has in the files: of a kernel its outputs."""
    return shapes[parameter][-1 if parameter.startswith("layers/") else 0]


def _part(family: Family, parameter: str, shapes: dict[str, tuple[int, ...]]) -> slice:
    """The rows of a tensor that are this parameter's."""
    first = 0
    for other in _shared(family, parameter):
        if other == parameter:
            break
        first += _rows(other, shapes)
    return slice(first, first + _rows(parameter, shapes))


def _check_shapes(stored: dict[str, PlainTensor], family: Family, shapes: dict[str, tuple[int, ...]]) -> None:
    for parameter, shape in shapes.items():
        rows = sum(_rows(other, shapes) for other in _shared(family, parameter))
        columns = shape[1:-1] if parameter.startswith("layers/") else shape[1:]
        for name in _names(family, parameter, shape):
            if stored[name].shape != (rows, *columns):
                raise UserError(
                    f"{stored[name].file}: tensor {name} is {list(stored[name].shape)}, the config asks for "
                    f"{[rows, *columns]}; config and weights belong to different models; download the model again"
                )


def _read(tensor: PlainTensor, part: slice, transposed: bool) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = tensor.read(part.start, part.stop).astype(np.float32, copy=False)
    if not all_finite(numbers):
        raise UserError(
            f"{tensor.file}: tensor {tensor.name} is not finite, or too large for float32; download the model again"
        )
    return np.ascontiguousarray(numbers.T) if transposed else numbers


def load_dense(folders: Sequence[Path], config: SentenceConfig) -> list[dict[str, Any]]:
    """Kernel and bias of every dense layer after the pooling. Raises UserError for damaged files."""
    layers = []
    for folder, module in zip(folders, (module for module in config.after if isinstance(module, Dense)), strict=True):
        file = folder / "model.safetensors"
        if not file.is_file():
            raise Unsupported(f"a dense layer without {file.name}")
        stored = {tensor.name: tensor for tensor in safetensors_tensors(file)}
        shapes = {"linear.weight": (module.d_out, module.d_in)} | (
            {"linear.bias": (module.d_out,)} if module.bias else {}
        )
        if {name: tensor.shape for name, tensor in stored.items()} != shapes:
            raise UserError(
                f"{file}: holds other tensors than the config.json beside it asks for; download the model again"
            )
        weights = {
            name: jnp.asarray(_read(stored[name], slice(0, module.d_out), len(shape) == 2))
            for name, shape in shapes.items()
        }
        layers.append({"kernel" if name == "linear.weight" else "bias": array for name, array in weights.items()})
    return layers
