"""Records the environment of a run or evaluation, to reproduce it or to explain differences."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import t2l_jax
from t2l_jax.io.files import atomic_write, read_json
from t2l_jax.schema import Schema, Several, checked

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "torch")
SETTINGS = ("JAX_", "XLA_", "LIBTPU_", "CUDA_VISIBLE_DEVICES")  # prefixes of recorded environment variables


class _Record(Schema):
    sessions: Several[dict[str, Any]]


@contextmanager
def session(folder: Path, start: int, devices: Sequence[jax.Device]) -> Iterator[None]:
    """Record this process, which resumes after `start` steps or answers, in the folder's environment.json.

    The end of the block adds its duration in seconds; a killed process leaves none.
    """
    path, began = folder / "environment.json", time.monotonic()
    before = checked(_Record, read_json(path), str(path)).sessions if path.exists() else ()
    mine: dict[str, Any] = {"start": start, **environment(devices)}

    def note() -> None:
        atomic_write(path, json.dumps({"sessions": [*before, mine]}, indent=2) + "\n")

    note()
    try:
        yield
    finally:
        mine["seconds"] = round(time.monotonic() - began, 1)
        note()


def environment(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Versions, devices, host, source code and command of this process."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": _printable(shlex.join(sys.argv)),
        "folder": _printable(str(Path.cwd())),
        "commit": commit(Path(t2l_jax.__file__).parent),
        "t2l_jax": t2l_jax.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "devices": {"kind": devices[0].device_kind, "platform": devices[0].platform, "used": len(devices)},
        "host": {"name": platform.node(), "system": platform.platform(), "cpu": cpu_name(), "cores": os.cpu_count()},
        "settings": {name: _printable(os.environ[name]) for name in sorted(os.environ) if name.startswith(SETTINGS)},
    }


def code() -> dict[str, Any]:
    """The versions of what computes, which must be the same on all hosts of a run."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"commit": commit(Path(t2l_jax.__file__).parent), "t2l_jax": t2l_jax.__version__, **versions}


def _printable(text: str) -> str:
    """Text of the operating system, whose bytes may not be UTF-8, as text of a JSON file."""
    return os.fsencode(text).decode(errors="replace")


def commit(package: Path) -> str | None:
    """The git commit of the source code, with `-dirty` if it was modified; None if it is not under git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=False)
        except OSError:  # git is not installed
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed inside another repository
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def cpu_name() -> str:
    """The name of the host's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
