import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.errors import UserError
from t2l_jax.training import OptimizerConfig, make_optimizer, make_schedule
from t2l_jax.training.objectives.sft import SftConfig


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_then_decays_to_zero(decay):
    """With a constant gradient Adam's update is the learning rate itself."""
    steps, warmup, peak = 20, 5, 0.3
    config = OptimizerConfig(learning_rate=peak, weight_decay=0.0, warmup=0.25, decay=decay)
    optimizer = make_optimizer(config, steps)
    update = jax.jit(optimizer.update)
    params = jnp.zeros(())
    state, found = optimizer.init(params), []
    for _ in range(steps):
        change, state = update(jnp.asarray(0.5), state, params)
        found.append(-float(change))
    n = np.arange(steps)
    rise = peak * (1 + (warmup - 1) * n / warmup) / warmup
    left = (steps - n) / (steps - warmup)
    fall = peak * left if decay == "linear" else peak * 0.5 * (1 + np.cos(np.pi * (1 - left)))
    np.testing.assert_allclose(found, np.where(n < warmup, rise, fall), rtol=1e-4, atol=1e-6)


def test_the_optimiser_is_adamw_after_clipping_by_global_norm():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.05, clip=1.0, warmup=0.0)
    steps, rng = 4, np.random.default_rng(0)
    params = {"a": rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
    optimizer = make_optimizer(config, steps)
    found = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(found)
    first, second = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for n in range(steps):
        grads = {name: rng.standard_normal(p.shape) * (0.1 if n == 1 else 3.0) for name, p in params.items()}
        change, state = optimizer.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads), state, found)
        found = jax.tree.map(jnp.add, found, change)
        norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        rate = 0.1 if n == 0 else 0.1 * (1 - (n - 1) / (steps - 1))  # one step of warm-up, at the peak already
        for name, grad in grads.items():
            grad /= max(1.0, norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9 ** (n + 1)), second[name] / (1 - 0.999 ** (n + 1))
            params[name] = params[name] - rate * (mean / (np.sqrt(square) + 1e-8) + 0.05 * params[name])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, params)


def test_a_cooldown_ends_an_early_end_at_zero():
    config = OptimizerConfig(learning_rate=0.3, warmup=0.1, cooldown=4)
    plain = make_schedule(OptimizerConfig(learning_rate=0.3, warmup=0.1), 40)(np.arange(20))
    left = np.minimum(1, (20 - np.arange(20)) / 4)
    np.testing.assert_allclose(make_schedule(config, 40, 20)(np.arange(20)), plain * left, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (OptimizerConfig, {"warmup": 20}, "optimizer: field warmup: must be at most 1"),
        (OptimizerConfig, {"learning_rate": -1.0}, "optimizer: field learning_rate: must be above 0, got -1.0"),
        (OptimizerConfig, {"clip": 0.0}, "optimizer: field clip: must be above 0"),
        (OptimizerConfig, {"weight_decay": -0.1}, "optimizer: field weight_decay: must be at least 0"),
        (SftConfig, {"lora_dropout": 1.0}, "objective: field lora_dropout: must be below 1"),
        (SftConfig, {"neftune": -1.0}, "objective: field neftune: must be at least 0"),
    ],
)
def test_settings_out_of_range_are_named(config, changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)
