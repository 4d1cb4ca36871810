"""Folders that all processes of a run must see."""

from pathlib import Path

from t2l_jax.distributed import from_main, is_main, several, together
from t2l_jax.errors import UserError
from t2l_jax.io.files import os_errors_explained, partial_path


def check_shared(folder: Path) -> None:
    """Raise UserError in all processes unless the main one's folder, which must exist, is that of the others, too."""
    if not several():
        return
    probe = partial_path(folder)
    with together():
        if is_main():
            with os_errors_explained(folder):
                probe.touch()
    probe = folder / from_main(probe.name)
    try:
        with together():
            if not probe.exists():
                raise UserError(
                    f"{folder.absolute()}: not the folder of host 0: give an --out on a disk that all hosts share"
                )
    finally:
        if is_main():
            probe.unlink(missing_ok=True)
