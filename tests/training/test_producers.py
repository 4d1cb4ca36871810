import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax import hypernet
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.lora import Adapter, LoraModule, LoraSpec
from t2l_jax.training.producers import HypernetProducer, LoraTable

SPEC = LoraSpec((LoraModule("q_proj", 6, 8), LoraModule("v_proj", 6, 4)), num_layers=2, rank=2)
TINY = HypernetConfig(TaskEncoderConfig(dim=5), latent=8, head_in=12, init="reconstruction", dropout=0.3)
IDS = jnp.asarray([2, 0, 2])
Z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5), np.float32))


def assert_equal(first: Adapter, second: Adapter) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_hypernetwork_reads_z_and_not_the_identity():
    producer = HypernetProducer(TINY, SPEC)
    variables = producer.init(jax.random.key(0))
    adapters, extra = producer.adapters(variables, Z, IDS)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), adapters, hypernet.generate(TINY, SPEC, variables, Z)
    )
    assert float(extra) == 0.0
    assert_equal(producer.adapters(variables, Z, IDS + 1)[0], adapters)


def test_a_key_switches_the_hypernetworks_dropout_on_for_each_task_by_itself():
    producer = HypernetProducer(TINY, SPEC)
    variables = producer.init(jax.random.key(0))
    same = jnp.stack([Z[0]] * 3)
    made = jax.jit(lambda seed: producer.adapters(variables, same, IDS, jax.random.key(seed))[0].weights["q_proj"]["a"])
    assert not np.allclose(made(0)[0], made(0)[1])
    np.testing.assert_array_equal(made(0), made(0))
    assert not np.allclose(made(0), made(1))


def test_the_hypernetworks_own_loss_is_the_mean_over_tasks():
    config = HypernetConfig(TaskEncoderConfig(dim=5, kind="vq", codebook=4), latent=8, head_in=12)
    producer = HypernetProducer(config, SPEC)
    variables = producer.init(jax.random.key(0))
    assert variables.keys() == {"params"}
    _, extra = producer.adapters(variables, Z, IDS)
    alone = [producer.adapters(variables, Z[i : i + 1], IDS[i : i + 1])[1] for i in range(3)]
    np.testing.assert_allclose(extra, np.mean(alone), rtol=1e-5)
    assert extra > 0


def test_a_table_has_an_adapter_per_task():
    producer = LoraTable(4, SPEC)
    variables = producer.init(jax.random.key(0))
    table = variables["params"]
    assert table.batch_shape == (4,)
    a = table.weights["q_proj"]["a"]
    assert not np.allclose(a[0], a[1])
    assert not table.weights["q_proj"]["b"].any()
    adapters, extra = producer.adapters(variables, Z, IDS)
    for place, task in enumerate(IDS):
        assert_equal(adapters[place], table[task])
    assert float(extra) == 0.0


def test_a_table_of_one_is_shared_by_all_tasks():
    producer = LoraTable(1, SPEC)
    variables = producer.init(jax.random.key(0))
    adapters, _ = producer.adapters(variables, Z, IDS)
    assert adapters.batch_shape == (3,)
    for place in range(3):
        assert_equal(adapters[place], variables["params"][0])


@pytest.mark.parametrize("uses", [[1, 0, 2, 0], [3]], ids=["a table", "shared"])
def test_gradients_reach_the_rows_that_were_used_and_add_up(uses):
    """The batch has tasks 2, 0, 2."""
    tasks = len(uses)
    producer = LoraTable(tasks, SPEC)
    variables = producer.init(jax.random.key(0))

    def total(params: Adapter) -> jax.Array:
        adapters, _ = producer.adapters({"params": params}, Z, IDS)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(adapters))

    for leaf in jax.tree.leaves(jax.grad(total)(variables["params"])):
        np.testing.assert_array_equal(leaf, np.broadcast_to(np.reshape(uses, (tasks, 1, 1, 1)), leaf.shape))
