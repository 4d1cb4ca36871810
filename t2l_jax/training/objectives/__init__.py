"""Training objectives. To add one, write it and its configuration in this folder and extend `ObjectiveConfig`."""

from t2l_jax.training.objectives.base import FrozenBase, Objective
from t2l_jax.training.objectives.sft import Sft, SftConfig

__all__ = ["FrozenBase", "Objective", "ObjectiveConfig", "Sft", "SftConfig"]

# What a recipe's `objective` may be; each has the class `kind` and `build(FrozenBase) -> Objective`.
ObjectiveConfig = SftConfig
