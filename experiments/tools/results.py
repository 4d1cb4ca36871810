"""Writes what an experiment found: table.json (rows, command, machine, versions) and table.md, the same to read."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t2l_jax.io.files import atomic_write
from t2l_jax.io.session import environment

RESULTS = Path("experiments/results")
TABLE_JSON, TABLE_MD = "table.json", "table.md"
Rows = Sequence[Mapping[str, Any]]


def write(folder: Path, tables: Mapping[str, Rows], notes: Sequence[str] = ()) -> None:
    """Write tables, by title, with the command and machine of this process; print them too.

    The rows of a table have the same columns. Numbers are written as given: round them to the digits that count.
    """
    save(folder, {**provenance(), "tables": {name: list(rows) for name, rows in tables.items()}, "notes": list(notes)})
    print((folder / TABLE_MD).read_text())


def save(folder: Path, data: Mapping[str, Any]) -> None:
    """Write both files from the data of table.json."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / TABLE_JSON, json.dumps(data, indent=1) + "\n")
    parts = [f"## {name}\n\n{markdown(rows)}" for name, rows in data["tables"].items()]
    parts += ["".join(f"- {note}\n" for note in data["notes"])] if data["notes"] else []
    packages = ", ".join(f"{name} {version}" for name, version in data["packages"].items())
    made = "; ".join(part for part in (data["machine"], packages, data["date"]) if part)
    parts.append(f"`{data['command']}`  \n{made}\n")
    atomic_write(folder / TABLE_MD, "\n".join(parts))


def provenance() -> dict[str, Any]:
    """Command, date, commit, machine and versions of this process; no folders and no host name."""
    here = environment(jax.devices())
    spec = sys.modules["__main__"].__spec__
    program = ["python", "-m", spec.name] if spec else ["python", Path(sys.argv[0]).name]
    words = [re.sub(r"(^|(?<==))/\S*/", "", word) for word in sys.argv[1:]]
    device = "" if here["devices"]["platform"] == "cpu" else f"{here['devices']['kind']}, "
    return {
        "command": shlex.join([*program, *words]),
        "date": here["time"][:10],
        "commit": here["commit"],
        "machine": f"{device}{here['host']['cores']}-core {here['host']['cpu']}",
        "packages": {"python": here["python"], **here["packages"]},
    }


def markdown(rows: Rows) -> str:
    """A table for GitHub. The numbers of a column have as many decimals as its longest; tiny ones have an exponent."""
    columns = list(rows[0])
    forms = {name: _form([row[name] for row in rows]) for name in columns}
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row[name], forms[name]) for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _form(values: Sequence[Any]) -> str:
    """How the floats of a column are written."""
    floats = [value for value in values if isinstance(value, float)]
    if floats and 0 < max(map(abs, floats)) < 1e-3:
        return ".1e"
    texts = [repr(float(value)) for value in floats]
    return f",.{max((len(text.partition('.')[2]) for text in texts if 'e' not in text), default=0)}f"


def _cell(value: Any, form: str) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if "e" in repr(float(value)) else format(value, form)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value).replace("|", "\\|")
