"""What can be minimised. A new objective is a file of this folder with a configuration, and its name in the union."""

from t2l_jax.training.objectives.base import FrozenBase, Objective
from t2l_jax.training.objectives.sft import Sft, SftConfig

__all__ = ["FrozenBase", "Objective", "ObjectiveConfig", "Sft", "SftConfig"]

# What a recipe's `objective` may be; each has the class `kind` and `build(FrozenBase) -> Objective`.
ObjectiveConfig = SftConfig
