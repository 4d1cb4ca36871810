"""One step, by plain gradient descent: devices and parts of a batch change how it is computed, not what."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import CONFIG, PAPER, SHAPE, SPEC, make_base, sampler

from t2l_jax.decoder import Decoder
from t2l_jax.sharding import make_mesh, place_base, place_batch, replicated
from t2l_jax.training import TrainState, make_step, make_validation
from t2l_jax.training.objectives.sft import SftConfig
from t2l_jax.training.producers import LoraTable

PLAIN = SftConfig(label_smoothing=0.1, weight_l2=0.1, neftune=0.0, lora_dropout=0.0)
TABLE = LoraTable(16, SPEC)  # compiled soon
DRAW = sampler(replace(SHAPE, tasks=16), repeat=4).draw


def take_step(
    sft: SftConfig, producer: Any, accumulate: int = 1, devices: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The state and metrics after a step from the producer's own initialisation, somewhat moved."""
    optimizer = optax.sgd(0.1)
    mesh = None if devices is None else make_mesh(data=devices)
    params = jax.tree.map(lambda leaf: leaf + 0.01, producer.init(jax.random.key(0))["params"])
    state, base, batch = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), make_base(), DRAW(0)
    if mesh is not None:
        state, base, batch = jax.device_put(state, replicated(mesh)), place_base(mesh, base), place_batch(mesh, batch)
    step = make_step(producer, Decoder(CONFIG), sft, optimizer, 0, accumulate=accumulate, mesh=mesh)
    return step(state, {}, base, batch)


def assert_close(found: Any, expected: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6), found, expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_eight_devices_do_what_one_does(accumulate):
    """Dropout and noise included: random numbers do not depend on where they are drawn."""
    one, eight = (take_step(PAPER, TABLE, accumulate, devices) for devices in (1, 8))
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
class Demanding:
    """A producer with a loss of its own."""

    inner: Any

    def init(self, key: Any) -> Any:
        return self.inner.init(key)

    def adapters(self, variables: Any, z: Any, task_ids: Any, key: Any = None) -> Any:
        adapter, own = self.inner.adapters(variables, z, task_ids, key)
        return adapter, own + 3.0


def test_the_loss_that_is_logged_is_the_one_that_is_minimised():
    plain, demanding = (take_step(PLAIN, producer)[1] for producer in (TABLE, Demanding(TABLE)))
    assert (plain["producer_loss"], demanding["producer_loss"]) == (0, 3)
    np.testing.assert_allclose(demanding["loss"], plain["loss"] + 3, rtol=1e-6)
    validate = make_validation(Demanding(TABLE), Decoder(CONFIG), PLAIN)
    found = validate(TABLE.init(jax.random.key(0))["params"], {}, make_base(), DRAW(0))
    expected = found["cross_entropy"] + 0.1 * found["weight_penalty"] + 3
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
