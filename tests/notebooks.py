"""Notebooks, run from their first cell to their last by the code beside them, and what they print."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
QUIET = "ignore:IProgress not found"  # tqdm's advice where ipywidgets is not installed


def read(path: Path) -> Any:
    """A committed notebook."""
    return nbformat.read(path, as_version=4)


def execute(path: Path, parameters: str | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """The notebook with the outputs of a run in its own folder.

    `parameters` takes the place of the one cell that is tagged so; `settings` are environment variables.
    """
    notebook = read(path)
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    if parameters is not None:
        (tagged,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        tagged.source = parameters
    notebook.cells.append(nbformat.v4.new_code_cell("import t2l_jax; print(t2l_jax.__file__)"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the kernel is a process of its own
        # As a user runs it: one device, optimised programs (it trains a real model), promotion as JAX has it (optax).
        for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_NUMPY_DTYPE_PROMOTION"):
            patch.delenv(name)
        patch.delenv("JAX_NUMPY_RANK_PROMOTION")
        patch.setenv("PYTHONWARNINGS", QUIET)
        for name, value in (settings or {}).items():
            patch.setenv(name, value)
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
    return notebook


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: Any, stream: str = "stdout") -> str:
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == stream)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def errors(notebook: Any) -> list[Any]:
    return [output for output in outputs(notebook) if output.output_type == "error"]
