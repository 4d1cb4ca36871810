"""A PyTorch state dict (`torch.save`), read without running what is in it.

Such a file is a ZIP archive of tensors beside a pickle, and a pickle is a program. So its instructions are listed
before torch sees it: it may name tensors, their types of storage and nothing else. Then torch's weights-only loader
reads it.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained
from t2l_jax.io.tensor import all_finite
from t2l_jax.schema import shown

MAX_PICKLE = 1 << 24  # bytes; a tensor takes a hundred
_ALLOWED = {
    *("collections OrderedDict", "torch._utils _rebuild_tensor_v2"),
    *("torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage"),
}


def load_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict in float32, in the order of the file.

    They are mapped where they are float32 in the file. Raises UserError for a file that is damaged, holds something
    else than tensors of float32, float16 or bfloat16, or a number that is not finite.
    """
    _check_archive(path)
    import torch  # here, since importing it takes seconds

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch raises on a damaged file has no limits
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a state dict that can be read: {reason:.200}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: expected a state dict, tensors by their names, got {type(state).__name__}")
    room, tensors = path.stat().st_size, {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path}: {shown(name)} is no plain tensor but {type(tensor).__name__}")
        room -= tensor.numel() * tensor.element_size()
        if room < 0:  # strides or a storage in common make much of little
            raise UserError(f"{path}: its tensors are larger than the file: save it again, each with its own numbers")
        tensors[name] = tensor.detach().float().numpy()
        if not all_finite(tensors[name]):
            raise UserError(f"{path}: tensor {shown(name)} is not finite: download the file or save it again")
    return tensors


def _check_archive(path: Path) -> None:
    """Raise UserError unless the file is a whole archive, uncompressed, with a pickle of nothing but tensors."""
    with os_errors_explained(path, "read"), open_file(path) as stream:
        size = stream.seek(0, 2)
        try:
            with zipfile.ZipFile(stream) as archive:
                records = archive.infolist()
                names = {record.filename for record in records}
                stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
                if not stored or len(names) != len(records) or sum(record.file_size for record in records) > size:
                    raise UserError(f"{path}: compressed, or with a record twice: torch.save does not write such files")
                pickles = [record for record in records if record.filename.endswith("data.pkl")]
                if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
                    raise UserError(f"{path}: not a file of torch.save with one state dict; download it again")
                if (bad := archive.testzip()) is not None:
                    raise UserError(f"{path}: damaged at {shown(bad)}; download or copy the file again")
                _check_pickle(archive.read(pickles[0]), path)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise UserError(
                f"{path}: damaged or cut short, or no file of torch.save ({error}); download or copy it again"
            ) from error


def _check_pickle(data: bytes, path: Path) -> None:
    """Raise UserError for a pickle that names anything but the parts of a state dict."""
    for instruction, argument, _ in pickletools.genops(data):
        named = argument if instruction.name == "GLOBAL" else instruction.name
        other = instruction.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
        if other or (instruction.name == "GLOBAL" and argument not in _ALLOWED):
            raise UserError(
                f"{path}: its pickle names {shown(named)}, which is no tensor of float32, float16 or bfloat16: "
                "it could run code, and is not loaded"
            )
