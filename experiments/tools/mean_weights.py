"""The mean of the weights of several folders, as one folder: of models, or of adapters for a text encoder.

Command: python -m experiments.tools.mean_weights FOLDER FOLDER --out FOLDER                               (a second)

Weights that began from one another have a mean that works. Every file that ends in .safetensors is averaged; the other
files are those of the first folder.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import load_file, save
from tyro.conf import Positional

from t2l_jax.io.files import atomic_folder


@dataclass(frozen=True)
class MeanWeights:
    """Average weights."""

    folders: Positional[tuple[Path, ...]]
    """Folders whose weights have the same names and shapes."""
    out: Path
    """Folder to write."""


def main(args: MeanWeights) -> None:
    """Write the folder."""
    files = [{path.relative_to(folder) for path in folder.rglob("*.safetensors")} for folder in args.folders]
    if len(files) < 2 or not files[0] or any(found != files[0] for found in files):
        raise SystemExit("give two or more folders with the same .safetensors files")
    with atomic_folder(args.out) as partial:
        shutil.copytree(args.folders[0], partial, dirs_exist_ok=True)
        for path in files[0]:
            first, *others = [load_file(folder / path) for folder in args.folders]
            shapes = {name: weight.shape for name, weight in first.items()}
            for folder, other in zip(args.folders[1:], others, strict=True):
                if {name: weight.shape for name, weight in other.items()} != shapes:
                    raise SystemExit(f"{folder}: its {path.name} has other names or shapes than {args.folders[0]}'s")
            mean = {
                name: np.mean([file[name] for file in (first, *others)], axis=0, dtype=np.float32).astype(weight.dtype)
                for name, weight in first.items()
            }
            (partial / path).write_bytes(save(mean, metadata={"format": "pt"}))


if __name__ == "__main__":
    main(tyro.cli(MeanWeights))
