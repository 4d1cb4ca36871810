"""Loads base models: decoder config and parameters, tokenizer, and the tokens that end an answer."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers import __version__ as transformers_version

from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.quantized import BaseKind, Stored, check_blocks, stored_as
from t2l_jax.errors import UserError
from t2l_jax.io.families import Family
from t2l_jax.io.families.config import decoder_config, find_family
from t2l_jax.io.families.family import TOP_NAMES
from t2l_jax.io.files import atomic_folder, cache_folder, read_json
from t2l_jax.io.filling import Filling, Placement, Slot, block_rows
from t2l_jax.io.gguf import gguf_config
from t2l_jax.io.locations import ModelFiles, resolve
from t2l_jax.io.readers import tensors, weight_files
from t2l_jax.io.tensor import Tensor
from t2l_jax.schema import shown

Params = dict[str, Any]


def load_config(files: ModelFiles) -> DecoderConfig:
    """The decoder config from a model's `config.json` or GGUF metadata. Reads no weights."""
    return _read_config(files.path)[1]


def _read_config(path: Path) -> tuple[Family, DecoderConfig]:
    weights = weight_files(path)[0]
    return gguf_config(weights) if weights.suffix == ".gguf" else _hugging_face_config(path / "config.json")


def _hugging_face_config(file: Path) -> tuple[Family, DecoderConfig]:
    values = read_json(file)
    return find_family(values, file), decoder_config(values, file)


def load_family(location: str) -> tuple[Family, DecoderConfig]:
    """The family and decoder config of a base model. Its weights need not be there, and the hub is not asked for them.

    Raises UserError if it cannot be found, or is not supported.
    """
    path = resolve(location, config_only=True).path
    file = path / "config.json"
    return _hugging_face_config(file) if file.is_file() else _read_config(path)


def check_separate(files: ModelFiles, projections: Iterable[str]) -> None:
    """Raise UserError for projections that the model's own files keep as one matrix with others.

    PEFT knows that matrix alone, so it would leave out what an adapter says of a part of it.
    """
    family, _ = _read_config(files.path)
    for name in projections:
        if family.is_fused(name):
            whole = family.names[name].hugging_face
            raise UserError(
                f"{files.location}: keeps {name} in one matrix with others, {whole}, which is all that PEFT can adapt; "
                "adapt o_proj or down_proj"
            )


def load_base(
    files: ModelFiles,
    dtype: DTypeLike = jnp.float32,
    sharding: Placement | None = None,
    base: BaseKind = "native",
) -> tuple[DecoderConfig, Params]:
    """A base model's config and its parameters in `dtype`, or kernels in 8 or 4 bits (`decoder.quantized`).

    Each is created with the sharding that `sharding` returns. Tensors are read in blocks of rows and written into
    parameters that are already on the devices, so that host memory holds only one extra block; each process reads what
    its own devices hold. Raises UserError if files are missing, truncated or of another model, or hold numbers
    that are not finite: checkpoint and decoder must match one to one. The config is that of `load_config`, but for a
    head that the files hold beside an embedding which it is said to equal and does not.
    """
    family, config = _read_config(files.path)
    stored = _stored(files.path)
    if config.tied_head:
        config, stored = _untie(config, stored)
    shapes = parameter_shapes(config)
    slots = checkpoint_slots(family, shapes)
    _check_fit(stored, slots, config, files.path)
    kept, place = stored_parameters(config, dtype, base), sharding or (lambda _: None)
    filled: dict[str, Filling] = {}
    for name, tensor in stored.items():
        for slot in slots.get(name, ()):
            if slot.path not in filled:
                filled[slot.path] = Filling(slot.path, kept[slot.path], shapes[slot.path], place)
            filled[slot.path].fill(tensor, slot, dtype)
    return config, unflatten_dict({path: one.joined() for path, one in filled.items()}, sep="/")


def _stored(path: Path) -> dict[str, Tensor]:
    """A model's tensors by name, without those that some files hold but no model needs: rotary frequencies."""
    stored: dict[str, Tensor] = {}
    for tensor in tensors(path):
        if tensor.name in stored:
            raise UserError(
                f"{tensor.file}: tensor {tensor.name} is also in {stored[tensor.name].file}; keep one of them"
            )
        if not tensor.name.endswith("rotary_emb.inv_freq"):
            stored[tensor.name] = tensor
    return stored


def _untie(config: DecoderConfig, stored: dict[str, Tensor]) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """A tied head may be in the files, too: alone, it is the embedding; with other values, the head of its own.

    That is what transformers makes of it.
    """
    embedding, head = (f"{TOP_NAMES[name].hugging_face}.weight" for name in ("embedding", "head"))
    if head not in stored:
        return config, stored
    if embedding in stored and not _equal(stored[embedding], stored[head]):
        return replace(config, tied_head=False), stored
    rest = {name: tensor for name, tensor in stored.items() if name != head}
    return config, {embedding: stored[head]} | rest


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    step = block_rows(one)
    return all(
        np.array_equal(one.read(start, stop), other.read(start, stop))
        for start, stop in ((start, min(start + step, one.shape[0])) for start in range(0, one.shape[0], step))
    )


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every decoder parameter."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)["params"]
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


def stored_parameters(
    config: DecoderConfig, dtype: DTypeLike = jnp.float32, base: BaseKind = "native"
) -> dict[str, Stored]:
    """Path -> shapes and types of what `load_base` makes of every decoder parameter.

    Raises UserError if nf4 cannot have its blocks.
    """
    check_blocks(config.projection_widths(), base)
    return {path: stored_as(path, shape, dtype, base) for path, shape in parameter_shapes(config).items()}


def base_bytes(config: DecoderConfig, dtype: DTypeLike = jnp.float32, base: BaseKind = "native") -> int:
    """Bytes of a base model's parameters."""
    leaves = jax.tree.leaves(stored_parameters(config, dtype, base))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def checkpoint_slots(family: Family, shapes: dict[str, tuple[int, ...]]) -> dict[str, list[Slot]]:
    """Name of every required checkpoint tensor -> its destinations, in the order of its rows."""
    slots: dict[str, list[Slot]] = {}
    modules = list(family.names)
    layered = sorted(
        (path.split("/") for path in shapes if path.startswith("layers/")), key=lambda p: modules.index(p[1])
    )
    for path, shape in shapes.items():
        if not path.startswith("layers/"):
            name = TOP_NAMES[path.removesuffix("/scale")].hugging_face
            slots[f"{name}.weight"] = [Slot(path, None, False, shape)]
    for parts in layered:
        path, module, leaf = "/".join(parts), parts[1], parts[2]
        name, suffix = family.names[module].hugging_face, "bias" if leaf == "bias" else "weight"
        depth, *one = shapes[path]
        transposed = leaf == "kernel"
        shape = tuple(reversed(one)) if transposed else tuple(one)
        for layer in range(depth):
            parents = slots.setdefault(f"model.layers.{layer}.{name}.{suffix}", [])
            parents.append(Slot(path, layer, transposed, shape, sum(slot.shape[0] for slot in parents)))
    return slots


def _check_fit(
    stored: Mapping[str, Tensor], slots: Mapping[str, Sequence[Slot]], config: DecoderConfig, path: Path
) -> None:
    """Files and decoder match one to one. Nothing of the size that the config claims has been made before this."""
    for name, tensor in stored.items():
        if name not in slots:
            raise UserError(
                f"{tensor.file}: tensor {shown(name)} has no place in a model of {config.num_layers} layers and width "
                f"{config.width} as the config describes it; take the config that belongs to the weights"
            )
        expected = (sum(slot.shape[0] for slot in slots[name]), *slots[name][0].shape[1:])
        shape = tuple(reversed(tensor.shape)) if tensor.transposed else tensor.shape
        if shape != expected:
            raise UserError(
                f"{tensor.file}: tensor {name} is {list(shape)}, the config asks for {list(expected)}; "
                "config and weights belong to different models; download the model again"
            )
    missing = sorted(set(slots) - set(stored))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{path}: the weights lack {', '.join(missing[:3])}{more}; download the model again")


def load_tokenizer(files: ModelFiles, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with its own chat template or the given one.

    Reads no weights and runs no code of the model. A tokenizer converted from GGUF, which takes several seconds, is
    cached.
    """
    tokenizer = _own_tokenizer(files)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def _own_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    path = files.path
    if path.is_dir() and any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return _read_tokenizer(path)
    file = weight_files(path)[0]
    if file.suffix != ".gguf":
        raise UserError(f"{path}: has no tokenizer.json; download the model again, with its tokenizer")
    status = file.stat()
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {transformers_version}"
    folder = cache_folder() / "tokenizers" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not folder.is_dir():
        tokenizer = _read_tokenizer(file.parent, gguf_file=file.name)
        try:
            with atomic_folder(folder) as partial:
                tokenizer.save_pretrained(partial)
        except UserError:  # another process may have been faster
            if not folder.is_dir():
                raise
    return _read_tokenizer(folder)


def _read_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    try:
        if folder.parent == cache_folder() / "tokenizers" and not options:
            # One that was converted from GGUF. AutoTokenizer would take the same class, and import PyTorch.
            file = folder / "tokenizer_config.json"
            if read_json(file).get("tokenizer_class") == "TokenizersBackend":
                return PreTrainedTokenizerFast.from_pretrained(folder)
        from transformers import AutoTokenizer  # here, since it imports PyTorch

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # transformers' parsers raise any kind of exception
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason:.200}); download the model again") from error


def load_stop_ids(files: ModelFiles, eos: int | None) -> tuple[int, ...]:
    """Sorted ids of the tokens that end a turn: EOS, and those in `generation_config.json`.

    Raises UserError if that file lists anything but token ids, or if there are no such tokens.
    """
    stops = set() if eos is None else {eos}
    path = files.path / "generation_config.json"
    if path.is_file():
        listed = read_json(path).get("eos_token_id")
        ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not all(type(token) is int for token in ids):
            raise UserError(f"{path}: eos_token_id must be a token id or a list of them, got {listed!r}")
        stops.update(ids)
    if not stops:
        raise UserError(f"{files.location}: no token ends an answer; give the tokenizer an eos_token")
    return tuple(sorted(stops))
