"""One step, by plain gradient descent: devices and parts of a batch change how it is computed, not what."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from tiny_training import PAPER, SHAPE, SPEC, objective, sampler

from t2l_jax.sharding import make_mesh, place_batch, replicated
from t2l_jax.training import OptimizerConfig, TrainState, make_optimizer, make_step, make_validation
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.trainees import LoraTable, Trainee

PLAIN = SftConfig(label_smoothing=0.1, weight_l2=0.1, neftune=0.0, lora_dropout=0.0)
TABLE = LoraTable(16, SPEC)  # compiled soon
DRAW = sampler(replace(SHAPE, tasks=16), repeat=4).draw


SGD = optax.sgd(0.1)


def take_step(
    sft: SftConfig, trainee: Trainee, accumulate: int = 1, mesh: Mesh | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The state and metrics after a step from the trainee's own initialisation, somewhat moved."""
    params = jax.tree.map(lambda leaf: leaf + 0.01, trainee.init(jax.random.key(0))["params"])
    state, learn, batch = TrainState(jnp.zeros((), jnp.int32), params, SGD.init(params)), objective(sft), DRAW(0)
    if mesh is not None:
        state, learn, batch = jax.device_put(state, replicated(mesh)), learn.place(mesh), place_batch(mesh, batch)
    return make_step(trainee, SGD, 0, accumulate, mesh)(state, {}, learn, batch)


def assert_close(found: Any, expected: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, expected)


@pytest.mark.parametrize(("data", "fsdp", "tensor", "accumulate"), [(8, 1, 1, 1), (2, 4, 1, 2), (2, 2, 2, 1)])
def test_eight_devices_do_what_one_does(data, fsdp, tensor, accumulate):
    """Dropout and noise included: random numbers do not depend on where they are drawn."""
    one = take_step(PAPER, TABLE, accumulate, make_mesh(data=1))
    eight = take_step(PAPER, TABLE, accumulate, make_mesh(fsdp, tensor, data))
    assert_close(eight, one)
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in jax.tree.leaves(eight[0]))


def test_parts_of_a_batch_give_the_gradient_and_metrics_of_the_whole():
    whole = take_step(PLAIN, TABLE)
    for parts in (2, 16):
        assert_close(take_step(PLAIN, TABLE, parts), whole)


def test_every_part_draws_its_own_noise():
    noisy = replace(PLAIN, neftune=50.0)
    assert abs(take_step(noisy, TABLE, 2)[1]["loss"] - take_step(noisy, TABLE)[1]["loss"]) > 1e-5


@dataclass(frozen=True)
class Demanding(LoraTable):
    """A trainee with a loss of its own."""

    def adapters(self, variables: Any, conditions: Any, key: Any = None) -> Any:
        adapter, own = super().adapters(variables, conditions, key)
        return adapter, own + 3.0


def test_the_loss_that_is_logged_is_the_one_that_is_minimised():
    trainees = TABLE, Demanding(TABLE.num_tasks, SPEC)
    plain, demanding = (take_step(PLAIN, trainee)[1] for trainee in trainees)
    assert (plain["trainee_loss"], demanding["trainee_loss"]) == (0, 3)
    np.testing.assert_allclose(demanding["loss"], plain["loss"] + 3, rtol=1e-6)
    validate = make_validation(trainees[1])
    metrics = validate(TABLE.init(jax.random.key(0))["params"], {}, objective(PLAIN), DRAW(0))
    expected = metrics["cross_entropy"] + 0.1 * metrics["weight_penalty"] + 3
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_equal_arguments_give_the_same_compiled_step():
    """A second run in a process does not compile again; its base model may be another array of the same shape."""
    step = make_step(TABLE, SGD, 0)
    assert make_step(LoraTable(16, SPEC), SGD, 0) is step
    assert make_step(LoraTable(16, SPEC), SGD, 1) is not step
    assert make_optimizer(OptimizerConfig(), 5) is make_optimizer(OptimizerConfig(), 5)
    take_step(PLAIN, TABLE)
    compiled = step._cache_size()
    take_step(PLAIN, TABLE)
    assert step._cache_size() == compiled


def test_a_step_is_the_same_where_numbers_have_64_bits_by_default():
    """As with JAX_ENABLE_X64=1."""
    expected = take_step(PLAIN, TABLE)
    with jax.enable_x64(True):
        found = take_step(PLAIN, TABLE)
    assert_close(found, expected)
