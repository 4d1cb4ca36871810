"""Hypernetworks conditioned on an example's input: what they read, their batches, a whole run, and going on with it."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from tiny_published import snapshot
from tiny_recipe import make_recipe
from tiny_training import curves

import t2l_jax
from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.decoder.generation import Sampling
from t2l_jax.encoder import load_encoder
from t2l_jax.errors import UserError
from t2l_jax.evaluation.evaluate import evaluate
from t2l_jax.evaluation.plan import EvaluationConfig
from t2l_jax.evaluation.weights import find_baselines
from t2l_jax.hypernet import Condition, HypernetConfig, TaskEncoderConfig, write_adapters
from t2l_jax.lora import merge
from t2l_jax.training.recipe import Recipe, ReconstructionRecipe
from t2l_jax.training.run import run
from t2l_jax.training.trainees import InstanceHypernetwork, InstanceTextHypernetwork

NET = replace(tiny_training.NET, init="reconstruction", task=TaskEncoderConfig())
KINDS = {"instance": (InstanceHypernetwork, 4), "instance-text": (InstanceTextHypernetwork, 8)}


def sampler(rows: int = 1) -> Sampler:
    """The tiny tasks, whose example n has an instance of its own: task and example can be read off it."""
    tasks = [
        replace(
            task,
            conditions=Condition(task.conditions.z, task.conditions.task),
            instances=np.asarray([[number, n, 1, -1] for n in range(6)], np.float32),
        )
        for number, task in enumerate(tiny_training.make_tasks())
    ]
    return Sampler(tasks, BatchConfig(tasks=2, rows=rows, length=12, packing=False), 1)


# --- what is read


@pytest.mark.parametrize("name", KINDS)
def test_the_task_encoder_reads_the_embeddings_that_the_condition_holds(name):
    """One after the other, as numpy concatenates them; and nothing else."""
    kind, width = KINDS[name]
    trainee = kind.make(NET, tiny_training.SPEC, 4, 9)
    assert trainee.config.task.dim == width
    batch = sampler().draw(0)
    z = batch.condition.z if kind.reads_text else None
    condition = Condition(z, batch.condition.task, batch.condition.instance)
    read = np.concatenate(([] if z is None else [z]) + [condition.instance], axis=-1)
    variables = trainee.init(jax.random.key(0))
    found, extra = trainee.adapters(variables, condition)
    expected = write_adapters(trainee.config, tiny_training.SPEC, variables, Condition(read))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert float(extra) == 0.0


def test_what_is_known_of_a_task_before_an_example_is_drawn():
    z = [np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)]
    first, _ = InstanceTextHypernetwork.conditions([("a", "b"), ("c",)], [0, 1], z)
    np.testing.assert_array_equal(first.z, z[0])
    alone, other = InstanceHypernetwork.conditions([("a", "b"), ("c",)], [0, -1], None)
    assert (alone.z, alone.task.tolist(), other.task.tolist(), other.instance) == (None, [0], [-1], None)


def test_another_width_of_the_task_encoder_is_refused():
    with pytest.raises(UserError, match=r"task\.dim is 4, the width of z is 8: leave it out"):
        InstanceTextHypernetwork.make(HypernetConfig(TaskEncoderConfig(dim=4)), tiny_training.SPEC, 4, 2)


# --- one adapter for each example, in a step


def test_a_rows_logits_are_those_of_its_own_adapter_alone():
    """The reference: the example's adapter, written alone and added to the kernels of the base model."""
    trainee = InstanceTextHypernetwork.make(replace(NET, dropout=0.0), tiny_training.SPEC, 4, 4)
    variables = trainee.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, sampler(2).draw(3))
    base = tiny_training.objective().decoder
    params = tiny_training.make_base()
    adapters, _ = trainee.adapters(variables, batch.condition)
    assert len(adapters) == 4

    def hidden(params, tokens, at, adapter=None):
        return base.apply(
            {"params": params}, tokens, adapter, segments=batch.segments[at], positions=batch.positions[at]
        )[0]

    found = hidden(params, batch.tokens, slice(None), adapters)
    for at in range(4):
        one = Condition(batch.condition.z[at : at + 1], None, batch.condition.instance[at : at + 1])
        alone = trainee.adapters(variables, one)[0][0]
        expected = hidden(merge(params, alone), batch.tokens[at], at)
        real = batch.segments[at] > 0
        np.testing.assert_allclose(found[at][real], expected[real], atol=1e-4)
    b = np.asarray(adapters.weights["v_proj"]["b"])
    assert len(np.unique(b.reshape(len(b), -1), axis=0)) == 4


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path):
    trainee = InstanceTextHypernetwork.make(replace(NET, init="sft"), tiny_training.SPEC, 4, 4)
    loop = tiny_training.LOOP
    whole = tiny_training.run(tmp_path / "whole", sampler().draw, trainee=trainee, validation={})
    for part in (replace(loop, stop_after=3), loop):
        resumed = tiny_training.run(tmp_path / "parts", sampler().draw, trainee=trainee, validation={}, loop=part)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert np.any(whole["params"]["head_q_proj"]["kernel"])  # at the start it is zero
    losses = [[line["loss"] for line in curves(tmp_path / folder) if "loss" in line] for folder in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


# --- a whole run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    made = make_recipe(tmp_path_factory.mktemp("material"))
    return replace(made, trainee="instance-text", batch=replace(made.batch, packing=False))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2L_CACHE", str(folder.parent / "cache"))
        assert run(recipe, folder) == folder / "model"
    return folder


def test_a_run_is_published_validated_and_finished_once(recipe, finished):
    model = t2l_jax.load(finished / "model")
    assert (model.config.reads, model.config.hypernet.task.dim) == ("both", 32)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"seen/exact", "unseen tasks/exact"} <= {key for record in records for key in record}
    before = snapshot(finished / "model")
    run(recipe, finished)
    assert snapshot(finished / "model") == before


def test_the_model_writes_an_adapter_for_each_instance(recipe, finished):
    """From the embeddings of both texts, by the encoder that the recipe names."""
    model = t2l_jax.load(finished / "model")
    texts, inputs = ["say the first word"] * 2, ["one two red", "one two blue"]
    encoder = load_encoder(recipe.encoder)
    read = np.concatenate([encoder.embed(texts), encoder.embed(inputs)], axis=-1)
    found = model.generate(texts, inputs)
    expected = write_adapters(model.config.hypernet, model.config.lora, model.variables, Condition(read))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    b = found.weights["v_proj"]["b"]
    assert np.any(b[0] != b[1])


def test_the_run_is_a_column_of_an_evaluation(recipe, finished, tmp_path):
    given = find_baselines(None, None, instance=str(finished))
    config = EvaluationConfig(
        recipe.tasks[0], only=("last",), methods=("instance",), examples=2, wordings=2, max_new_tokens=4
    )
    evaluate(given.instance, config, tmp_path / "out", given)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [(line["method"], line["example"]) for line in lines] == [("instance", 0), ("instance", 1)]
    llm = given.instance.load_base()
    for line, text in zip(lines, ("one two red", "one two blue"), strict=True):
        adapter = given.instance.generate(["say the last word"], [text])[0]
        whole = llm.replace(params=merge(llm.params, adapter)).chat([text], sampling=Sampling(4))[0]
        assert line["prediction"] == whole


def test_packed_rows_are_refused_by_name(recipe):
    for name in KINDS:
        with pytest.raises(UserError, match=f"batch.packing: {name} writes an adapter for each example"):
            replace(recipe, trainee=name, batch=replace(recipe.batch, packing=True))
        with pytest.raises(UserError, match=f"trainee: {name} cannot reconstruct a library"):
            ReconstructionRecipe(trainee=name)
