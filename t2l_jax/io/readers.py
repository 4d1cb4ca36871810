"""Model files as streams of tensors that are read a few rows at a time: safetensors, Flax msgpack, GGUF.

Opening a file reads only its index. Rows (slices of the first axis) are read on demand, by plain reads rather than a
memory map, so that nothing stays in memory. All formats use the tensor names of a Hugging Face PyTorch checkpoint.
"""

from collections.abc import Iterator
from pathlib import Path

from t2l_jax.errors import UserError
from t2l_jax.io.files import os_errors_explained, read_json
from t2l_jax.io.flax_header import flax_tensors
from t2l_jax.io.gguf import gguf_tensors
from t2l_jax.io.gguf_header import split_parts
from t2l_jax.io.safetensors_header import safetensors_tensors
from t2l_jax.io.tensor import Tensor
from t2l_jax.schema import Schema, checked, shown

# In the order of transformers: a whole file comes before an index, whatever that names.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "flax_model.msgpack",
    "flax_model.msgpack.index.json",
)


class _Index(Schema):
    weight_map: dict[str, str]


def weight_files(path: Path) -> list[Path]:
    """The files of a model's weights, in reading order. `path` is a folder or a .gguf file.

    Of a GGUF model in several parts it is the first, which stands for them all. Raises UserError if there are none, or
    if an index names a missing file.
    """
    with os_errors_explained(path, "read"):
        if path.is_file():
            return [path]
        present = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        listed = {file: _shard_names(file) for file in present if file.name.endswith(".index.json")}
        if present:
            return _shards(present[0], listed[present[0]]) if present[0] in listed else present[:1]
        ggufs = sorted(path.glob("*.gguf"))
    if ggufs and ggufs == split_parts(ggufs[0]):
        return ggufs[:1]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise UserError(f"{path}: holds {len(ggufs)} GGUF files; name one of them: {', '.join(p.name for p in ggufs)}")
    raise UserError(f"{path}: no weights found; expected one of {', '.join(WEIGHT_FILES)}, or a .gguf file")


def tensors(path: Path) -> Iterator[Tensor]:
    """The tensors of a model, file by file. `path` is a folder or a .gguf file."""
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            yield from safetensors_tensors(file)
        elif file.suffix == ".msgpack":
            yield from flax_tensors(file)
        else:
            yield from gguf_tensors(file)


def _shard_names(index: Path) -> list[str]:
    """The files that an index names. It is checked wherever it lies, taken or not."""
    names = sorted(set(checked(_Index, read_json(index), str(index)).weight_map.values()))
    if not names:
        raise UserError(f"{index}: field weight_map is empty; download the index again")
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    for name in names:
        if "/" in name or "\0" in name or not name.endswith(f".{suffix}"):
            raise UserError(f"{index}: field weight_map names {shown(name)}, no .{suffix} file beside it")
    return names


def _shards(index: Path, names: list[str]) -> list[Path]:
    for name in names:
        if not (index.parent / name).is_file():
            raise UserError(f"{index.parent / name}: named by {index.name} but not there; download the model again")
    return [index.parent / name for name in names]
