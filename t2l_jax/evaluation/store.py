"""The folder of an evaluation: its settings, and one line per answer as it arrives, so that it can resume."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2l_jax.errors import UserError
from t2l_jax.io.files import (
    atomic_write,
    drop_partial_line,
    os_errors_explained,
    read_json,
    read_jsonl,
    refuse_nonempty,
)
from t2l_jax.schema import Schema, Share, Text, checked

SETTINGS_FILE = "settings.json"
PREDICTIONS_FILE = "predictions.jsonl"


def check(folder: Path, settings: dict[str, Any]) -> None:
    """Raise UserError if the folder holds an evaluation with other settings, or other files."""
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
    """Write the settings to the folder, after another `check`. A line that a kill truncated is removed, to append."""
    check(folder, settings)
    if (folder / PREDICTIONS_FILE).exists():
        drop_partial_line(folder / PREDICTIONS_FILE)
    if not (folder / SETTINGS_FILE).exists():
        atomic_write(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")


class Record(Schema):
    """What is read back of a line of PREDICTIONS_FILE."""

    key: Text
    score: Share


def read_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """The records by key. A last line that a kill truncated is left out.

    Raises UserError that names the line if another one is no record with a score from 0 to 1.
    """
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return {}
    records = {}
    for number, fields in read_jsonl(path, partial=True):
        try:
            key = checked(Record, fields, f"{path}, line {number}").key
        except UserError as error:
            raise UserError(f"{error}: delete the line, to have it answered again") from error
        records[key] = fields
    return records


def append(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append the records in one write and sync the file to disk."""
    path = folder / PREDICTIONS_FILE
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    with os_errors_explained(path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
