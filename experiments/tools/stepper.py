"""One training step as the speed experiments repeat it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t2l_jax.data.batch import Batch
from t2l_jax.decoder import Decoder
from t2l_jax.training import OptimizerConfig, TrainState, make_optimizer, make_step
from t2l_jax.training.objectives import Sft, SftConfig
from t2l_jax.training.trainees import Trainee


def stepper(trainee: Trainee, decoder: Decoder, base: Any, lora_dropout: float = 0.05) -> Callable[[Batch], None]:
    """A function that takes a step on a batch, from fresh weights, and waits for it. The first call compiles."""
    params = trainee.init(jax.random.key(0))["params"]
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    objective = Sft(base, decoder, SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=lora_dropout))
    step = make_step(trainee, optimizer, seed=0)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def run(batch: Batch) -> None:
        nonlocal state
        state, metrics = step(state, {}, objective, batch)
        jax.block_until_ready((state.params, metrics))

    return run
