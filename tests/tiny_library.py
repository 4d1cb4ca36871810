"""A tiny library of PEFT folders, written without our own writer's help where that matters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

SPEC = LoraSpec((LoraModule("q_proj", 16, 16), LoraModule("v_proj", 16, 8)), num_layers=2, rank=2)
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")


def random_adapters(count: int, seed: int = 0, spec: LoraSpec = SPEC) -> Adapter:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(0.1 * rng.standard_normal((count, *shape), np.float32))

    shapes = spec.shapes()
    return Adapter({name: {side: draw(*shape) for side, shape in pair.items()} for name, pair in shapes.items()}, spec)


def save_library(folder: Path, adapters: Adapter | None = None, base: str = "org/tiny", described: bool = True) -> Path:
    """One PEFT folder per adapter, with two descriptions each."""
    adapters = random_adapters(len(NAMES)) if adapters is None else adapters
    for name, index in zip(NAMES, range(len(adapters)), strict=False):
        save_peft(adapters[index], folder / name, base_model=base)
        if described:
            (folder / name / "description.txt").write_text(f"say {name}\nanswer with {name}\n")
    return folder


def deltas(adapter: Adapter) -> dict[str, np.ndarray]:
    """B A with the scale, in double precision."""
    return {
        name: adapter.spec.scale * np.asarray(pair["b"], np.float64) @ np.asarray(pair["a"], np.float64)
        for name, pair in adapter.weights.items()
    }
