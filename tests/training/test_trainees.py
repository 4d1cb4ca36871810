"""What is trained: adapters from conditions, what each trainee reads, and a trainee that somebody adds."""

import json
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from tiny_training import curves, run

import t2l_jax
from t2l_jax import schema
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, TaskEncoderConfig, write_adapters
from t2l_jax.io.peft import load_peft, save_peft
from t2l_jax.lora import Adapter, LoraModule, LoraSpec, init_adapter
from t2l_jax.training import LoopConfig
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.trainees import (
    TRAINEES,
    LoraTable,
    OneHotHypernetwork,
    Release,
    SeededLoraTable,
    SharedLora,
    TextHypernetwork,
    Trainee,
)

SPEC = LoraSpec((LoraModule("q_proj", 6, 8), LoraModule("v_proj", 6, 4)), num_layers=2, rank=2)
TINY = HypernetConfig(TaskEncoderConfig(dim=5), latent=8, head_in=12, init="reconstruction", dropout=0.3)
IDS = jnp.asarray([2, 0, 2])
Z = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5), np.float32))
TASKS = Condition(Z, IDS)
RELEASE = Release(
    "pypi:base==1", "org/base", None, "instance", ("red", "blue", "green", "white"), "Trained on nothing."
)


def assert_equal(first: Adapter, second: Adapter) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_hypernetwork_reads_z_and_not_the_identity():
    trainee = TextHypernetwork(TINY, SPEC)
    variables = trainee.init(jax.random.key(0))
    adapters, extra = trainee.adapters(variables, TASKS)
    expected = write_adapters(TINY, SPEC, variables, TASKS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), adapters, expected)
    assert float(extra) == 0.0
    assert_equal(trainee.adapters(variables, Condition(Z, IDS + 1))[0], adapters)


def test_a_one_hot_hypernetwork_reads_the_identity_and_not_z():
    trainee = OneHotHypernetwork.make(replace(TINY, task=TaskEncoderConfig()), SPEC, None, 4)
    variables = trainee.init(jax.random.key(0))
    adapters, _ = trainee.adapters(variables, Condition(task=IDS))
    expected = write_adapters(trainee.config, SPEC, variables, Condition(z=jnp.eye(4)[IDS]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), adapters, expected)
    assert_equal(trainee.adapters(variables, TASKS)[0], adapters)


def test_a_key_switches_the_hypernetworks_dropout_on_for_each_task_by_itself():
    trainee = TextHypernetwork(TINY, SPEC)
    variables = trainee.init(jax.random.key(0))
    same = Condition(jnp.stack([Z[0]] * 3), IDS)
    made = jax.jit(lambda seed: trainee.adapters(variables, same, jax.random.key(seed))[0].weights["q_proj"]["a"])
    assert not np.allclose(made(0)[0], made(0)[1])
    np.testing.assert_array_equal(made(0), made(0))
    assert not np.allclose(made(0), made(1))


def test_the_hypernetworks_own_loss_is_the_mean_over_tasks():
    config = HypernetConfig(TaskEncoderConfig(dim=5, kind="vq", codebook=4), latent=8, head_in=12)
    trainee = TextHypernetwork(config, SPEC)
    variables = trainee.init(jax.random.key(0))
    assert variables.keys() == {"params"}
    _, extra = trainee.adapters(variables, TASKS)
    alone = [trainee.adapters(variables, Condition(Z[i : i + 1], IDS[i : i + 1]))[1] for i in range(3)]
    np.testing.assert_allclose(extra, np.mean(alone), rtol=1e-5)
    assert extra > 0


@pytest.mark.parametrize(("table", "starts"), [(LoraTable, 1), (SeededLoraTable, 4)], ids=["one seed", "seeds"])
def test_a_table_has_an_adapter_per_task(table, starts):
    trainee = table(4, SPEC)
    variables = trainee.init(jax.random.key(0))
    table = variables["params"]
    assert table.batch_shape == (4,)
    a = table.weights["q_proj"]["a"]
    assert len(np.unique(a.reshape(4, -1), axis=0)) == starts
    assert not table.weights["q_proj"]["b"].any()
    adapters, extra = trainee.adapters(variables, TASKS)
    for place, task in enumerate(IDS):
        assert_equal(adapters[place], table[task])
    assert float(extra) == 0.0


def test_one_lora_is_shared_by_all_tasks():
    trainee = SharedLora(SPEC)
    variables = trainee.init(jax.random.key(0))
    adapters, _ = trainee.adapters(variables, TASKS)
    assert adapters.batch_shape == (3,)
    for place in range(3):
        assert_equal(adapters[place], variables["params"][0])


@pytest.mark.parametrize(
    ("trainee", "uses"), [(LoraTable(4, SPEC), [1, 0, 2, 0]), (SharedLora(SPEC), [3])], ids=["a table", "shared"]
)
def test_gradients_reach_the_rows_that_were_used_and_add_up(trainee, uses):
    """The batch has tasks 2, 0, 2."""
    variables = trainee.init(jax.random.key(0))

    def total(params: Adapter) -> jax.Array:
        adapters, _ = trainee.adapters({"params": params}, TASKS)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(adapters))

    for leaf in jax.tree.leaves(jax.grad(total)(variables["params"])):
        np.testing.assert_array_equal(leaf, np.broadcast_to(np.reshape(uses, (len(uses), 1, 1, 1)), leaf.shape))


# --- what is read


def test_what_is_read_of_a_task_is_a_condition_for_each_description():
    z = [np.ones((2, 5), np.float32), np.zeros((1, 5), np.float32)]
    first, second = TextHypernetwork.conditions([("a", "b"), ("c",)], [3, -1], z)
    np.testing.assert_array_equal(first.z, z[0])
    np.testing.assert_array_equal(first.task, [3, 3])
    np.testing.assert_array_equal(second.task, [-1])
    shared, _ = SharedLora.conditions([("a", "b"), ("c",)], [0, 1], None)
    assert (shared.z, shared.task.tolist()) == (None, [0, 0])
    identity, _ = OneHotHypernetwork.conditions([("a", "b"), ("c",)], [0, 1], None)
    assert (identity.z, identity.task.tolist()) == (None, [0])


def test_a_width_of_z_that_is_not_read_and_a_codebook_of_identities_are_refused():
    with pytest.raises(UserError, match=r"task\.dim is 7, the width of z is 16: leave it out"):
        TextHypernetwork.make(HypernetConfig(TaskEncoderConfig(dim=7)), SPEC, 16, 2)
    assert TextHypernetwork.make(HypernetConfig(), SPEC, 16, 2).config.task.dim == 16
    with pytest.raises(UserError, match=r"hypernet\.task\.kind is vq: a one-hot task identity is read by linear only"):
        OneHotHypernetwork.make(HypernetConfig(TaskEncoderConfig(kind="vq")), SPEC, None, 2)


# --- what is published


def somewhat(adapter: Adapter) -> Adapter:
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), adapter)


def test_a_table_is_published_as_a_folder_for_each_task_and_again(tmp_path):
    trainee = LoraTable(4, SPEC)
    for seed in (0, 1):  # a run that goes on replaces what it published
        variables = {"params": somewhat(trainee.init(jax.random.key(seed))["params"])}
        assert trainee.publish(tmp_path, variables, RELEASE) == tmp_path / "adapters"
        assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(RELEASE.tasks)
        for place, name in enumerate(RELEASE.tasks):
            read = load_peft(tmp_path / "adapters" / name)
            np.testing.assert_array_equal(
                read.weights["q_proj"]["a"], variables["params"].weights["q_proj"]["a"][place]
            )
    assert (
        json.loads((tmp_path / "adapters/red/adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    )


def test_a_shared_lora_is_published_as_one_folder(tmp_path):
    trainee = SharedLora(SPEC)
    variables = {"params": somewhat(trainee.init(jax.random.key(0))["params"])}
    read = load_peft(trainee.publish(tmp_path, variables, RELEASE))
    np.testing.assert_array_equal(read.weights["v_proj"]["a"], variables["params"].weights["v_proj"]["a"][0])


def test_a_one_hot_model_knows_its_tasks_and_no_text(tmp_path):
    trainee = OneHotHypernetwork.make(replace(TINY, task=TaskEncoderConfig()), SPEC, None, 4)
    folder = trainee.publish(tmp_path, trainee.init(jax.random.key(0)), RELEASE)
    model = t2l_jax.load(folder)
    assert (model.config.encoder, model.config.hypernet.task.dim) == (None, 4)
    assert json.loads((tmp_path / "tasks.json").read_text()) == {"tasks": list(RELEASE.tasks)}
    with pytest.raises(UserError, match="was trained from task identities and reads no text"):
        model.generate(["say the last word"])


# --- what it begins with


def test_one_lora_for_all_tasks_begins_from_a_peft_folder_of_any_scale(tmp_path):
    """What it does to the kernels stays the same, and another rank is refused."""
    spec = tiny_training.SPEC
    first = somewhat(init_adapter(jax.random.key(0), spec))
    save_peft(first, tmp_path / "first")
    for alpha in (16.0, 2.0):
        here = replace(spec, alpha=alpha)
        begun = SharedLora(here).begin_from(str(tmp_path / "first"), RELEASE, tiny_training.CONFIG)["params"][0]
        for name, delta in t2l_jax.lora.dense_delta(first).items():
            np.testing.assert_allclose(t2l_jax.lora.dense_delta(begun)[name], delta, atol=1e-6)
    with pytest.raises(UserError, match=r"lora\.rank is 2, the recipe's is 4: make them equal"):
        SharedLora(replace(spec, rank=4)).begin_from(str(tmp_path / "first"), RELEASE, tiny_training.CONFIG)


@pytest.mark.parametrize("offset", ["frozen", "learned"])
def test_a_hypernetwork_with_an_offset_begins_as_the_offset(tmp_path, offset):
    shared = somewhat(init_adapter(jax.random.key(0), tiny_training.SPEC))
    save_peft(shared, tmp_path)
    trainee = TextHypernetwork(replace(tiny_training.NET, offset=offset), tiny_training.SPEC)
    fresh = trainee.init(jax.random.key(0))
    begun = trainee.begin_as(tmp_path, fresh, tiny_training.CONFIG)
    assert begun.keys() == fresh.keys()
    written, _ = trainee.adapters(begun, Condition(z=jnp.ones((1, 4))))
    for name, delta in t2l_jax.lora.dense_delta(shared).items():
        np.testing.assert_allclose(t2l_jax.lora.dense_delta(written[0])[name], delta, atol=1e-5)


@pytest.mark.parametrize("name", TRAINEES)
def test_a_trainee_takes_what_its_class_says(name, tmp_path):
    """Where the class says that it begins fresh, or has no offset, both are refused."""
    trainee = TRAINEES[name].make(replace(TINY, task=TaskEncoderConfig()), SPEC, 5, 5)
    if not trainee.begins_from:
        with pytest.raises(UserError, match="init_from: a/model cannot be taken: this trainee begins with fresh"):
            trainee.begin_from("a/model", RELEASE, tiny_training.CONFIG)
    if not trainee.takes_offset:
        with pytest.raises(UserError, match=r"offset_init: .* cannot be used: this trainee has no offset"):
            trainee.begin_as(tmp_path, {}, tiny_training.CONFIG)


# --- one that somebody adds: a class, and a line in TRAINEES


@dataclass(frozen=True)
class Constant(Trainee):
    """Writes one adapter, whatever the task; only its size is trained."""

    spec: LoraSpec

    @classmethod
    def make(cls, net, spec, dim, num_tasks):
        return cls(spec)

    def init(self, key):
        return {"params": {"size": jnp.ones(())}, "constants": {"adapter": init_adapter(key, self.spec)}}

    def adapters(self, variables, conditions, key=None):
        count = conditions.task.shape[0]
        one = jax.tree.map(lambda leaf: variables["params"]["size"] * leaf, variables["constants"]["adapter"])
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), one), jnp.zeros(())

    def publish(self, folder, variables, release):
        (folder / "size.txt").write_text(str(float(variables["params"]["size"])))
        return folder / "size.txt"


def test_a_new_trainee_is_a_class_and_a_line_in_the_list(tmp_path, monkeypatch):
    monkeypatch.setitem(TRAINEES, "constant", Constant)
    monkeypatch.setitem(Recipe.__annotations__, "trainee", Literal[tuple(TRAINEES)])  # made when the module was loaded
    monkeypatch.setattr(schema, "_hints", schema._hints.__wrapped__)
    trainee = TRAINEES[Recipe(trainee="constant").trainee].make(HypernetConfig(), tiny_training.SPEC, None, 4)
    variables = run(tmp_path, trainee=trainee, loop=LoopConfig(steps=2, log_every=1))
    assert [record["step"] for record in curves(tmp_path) if "loss" in record] == [1, 2]
    assert float(trainee.publish(tmp_path, variables, RELEASE).read_text()) != 1.0
