"""The folder of an evaluation: its settings, and one line for every answer as it comes, so that it can go on."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, os_errors_explained, read_json, read_jsonl, refuse_nonempty

SETTINGS_FILE = "settings.json"
PREDICTIONS_FILE = "predictions.jsonl"


def check(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError where the folder holds an evaluation with other settings, or something else."""
    path = folder / SETTINGS_FILE
    mine = json.loads(json.dumps(settings))
    if path.exists():
        theirs = read_json(path)
        changed = sorted(key for key in mine.keys() | theirs.keys() if theirs.get(key) != mine.get(key))
        if changed:
            raise UserError(
                f"{path}: this folder holds an evaluation of another model or with other settings "
                f"({', '.join(changed)} differ): give another --out"
            )
    else:
        refuse_nonempty(folder, "evaluation")


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the folder; as `check` where another has taken it since."""
    check(folder, settings)
    if not (folder / SETTINGS_FILE).exists():
        atomic_write(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


def read_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines by key. A last line that a kill cut in two is removed from the file; it is answered again."""
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return {}
    with os_errors_explained(path, "read"), path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
    records = [record for _, record in read_jsonl(path)]
    return {str(record["key"]): record for record in records if "key" in record and "score" in record}


def append(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add lines in one write."""
    path = folder / PREDICTIONS_FILE
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    with os_errors_explained(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
