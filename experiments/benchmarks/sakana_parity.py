"""Do checkpoints of the original Text-to-LoRA give the same adapters here, imported, and exported and imported again?

Command: python -m experiments.benchmarks.sakana_parity FOLDER                                 (a minute on 2 cores)
Answer:  to rounding, for every variant that its scripts can make (results/sakana_parity)

FOLDER holds folders in the original's layout, each with expected.safetensors: z [n, d], and the adapters that the
original's code writes for them, A.<module> [n, layer, r, in] and B.<module> [n, layer, out, r].
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from safetensors.numpy import load_file
from tyro.conf import Positional

import t2l_jax
from experiments.tools.results import RESULTS, write
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.io.published import MODEL_FOLDER
from t2l_jax.io.sakana import import_sakana
from t2l_jax.io.sakana_export import export_sakana

EXPECTED = "expected.safetensors"


@dataclass(frozen=True)
class SakanaParity:
    """Compare the adapters of the original's checkpoints with ours."""

    folder: Positional[Path]
    out: Path = RESULTS / "sakana_parity"


def difference(folder: Path, expected: dict[str, np.ndarray]) -> float:
    """The largest difference of A and B of a published model, as a share of the largest weight."""
    model = t2l_jax.load(folder / MODEL_FOLDER if (folder / MODEL_FOLDER).exists() else folder)
    weights = model.adapters(Condition(z=expected["z"].astype(np.float32))).weights
    theirs = {key: value for key, value in expected.items() if key != "z"}
    apart = [np.abs(weights[key[2:]][key[0].lower()] - value).max() for key, value in theirs.items()]
    return float(max(apart) / max(np.abs(value).max() for value in theirs.values()))


def compare(folder: Path, scratch: Path) -> dict[str, Any]:
    """One checkpoint: imported, and exported and imported again. Raises UserError if it is refused."""
    expected = load_file(folder / EXPECTED)
    net = import_sakana(folder, scratch / "imported").hypernet
    export_sakana(scratch / "imported", scratch / "exported")
    import_sakana(scratch / "exported", scratch / "again")
    return {
        "checkpoint": folder.name,
        "head bias": net.head_bias,
        "z-scores": "yes" if net.standardised else "no",
        "offset": net.offset,
        "imported": float(f"{difference(scratch / 'imported', expected):.1e}"),
        "exported and imported": float(f"{difference(scratch / 'again', expected):.1e}"),
    }


def main(args: SakanaParity) -> None:
    """Write the comparisons, and what is refused with the reason."""
    rows, refused = [], []
    for folder in sorted(path.parent for path in args.folder.glob(f"*/{EXPECTED}")):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                rows.append(compare(folder, Path(scratch)))
            except UserError as error:
                reason = str(error).removeprefix(f"{folder}/")
                refused.append({"checkpoint": folder.name, "reason": reason})
    if not rows:
        raise SystemExit(f"{args.folder}: none of its folders, with {EXPECTED} in each, could be imported")
    notes = ["Largest difference of A and B from those of the original's code, as a share of the largest weight."]
    write(args.out, {"Imported": rows, **({"Refused": refused} if refused else {})}, notes)


if __name__ == "__main__":
    main(tyro.cli(SakanaParity))
