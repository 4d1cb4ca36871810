"""Training a producer of adapters by SFT: the optimiser, the step, the loop, and what a run leaves behind."""

from t2l_jax.training.best import BestConfig
from t2l_jax.training.loop import LoopConfig, train
from t2l_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from t2l_jax.training.step import TrainState, make_step, make_validation

__all__ = [
    "BestConfig",
    "LoopConfig",
    "OptimizerConfig",
    "TrainState",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "make_validation",
    "train",
]
