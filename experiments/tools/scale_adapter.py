"""A PEFT folder's LoRA at another strength: its B multiplied.

Command: python -m experiments.tools.scale_adapter runs/multitask/adapters --factor 0.85 --out runs/multitask085   (1 s)
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

import t2l_jax
from t2l_jax.io.files import read_json
from t2l_jax.lora import Adapter


@dataclass(frozen=True)
class ScaleAdapter:
    """Multiply the change that a LoRA makes."""

    adapter: tyro.conf.Positional[Path]
    """PEFT folder."""
    factor: float
    out: Path
    """PEFT folder to write."""


def main(args: ScaleAdapter) -> None:
    """Write the folder."""
    found = t2l_jax.load_peft(args.adapter)
    base = read_json(args.adapter / "adapter_config.json")["base_model_name_or_path"]
    weights = {name: {"a": pair["a"], "b": pair["b"] * args.factor} for name, pair in found.weights.items()}
    t2l_jax.save_peft(Adapter(weights, found.spec), args.out, base_model=base)


if __name__ == "__main__":
    main(tyro.cli(ScaleAdapter))
