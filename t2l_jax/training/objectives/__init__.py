"""Training objectives. To add one on SFT's batches, write it and its configuration here; extend `ObjectiveConfig`."""

from t2l_jax.training.objectives.base import FrozenBase, Objective
from t2l_jax.training.objectives.reconstruction import Reconstruction, ReconstructionConfig, TargetBatch
from t2l_jax.training.objectives.sft import Sft, SftConfig

__all__ = [
    "FrozenBase",
    "Objective",
    "ObjectiveConfig",
    "Reconstruction",
    "ReconstructionConfig",
    "Sft",
    "SftConfig",
    "TargetBatch",
]

# What the `objective` of a recipe of SFT may be; each has the class `kind` and `build(FrozenBase) -> Objective`.
ObjectiveConfig = SftConfig
