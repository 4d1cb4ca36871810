"""Training: what is trained (trainees), what is minimised (objectives), the step, the loop, what a run leaves."""

from t2l_jax.training.best import BestConfig
from t2l_jax.training.hooks import LoopConfig
from t2l_jax.training.loop import Batches, RunConfig, train
from t2l_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from t2l_jax.training.step import TrainState, make_step, make_validation

__all__ = [
    "Batches",
    "BestConfig",
    "LoopConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainState",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "make_validation",
    "train",
]
