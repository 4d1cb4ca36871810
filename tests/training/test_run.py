"""A whole run on a tiny base model, from task folders to a published model that loads and generates."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_adapters import save_encoder_adapter
from tiny_published import snapshot
from tiny_recipe import make_recipe

import t2l_jax
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.sources import read_tasks
from t2l_jax.encoder.sentence_transformers import SentenceEncoder
from t2l_jax.errors import UserError
from t2l_jax.evaluation.weights import find_baselines
from t2l_jax.io.files import atomic_write
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import load_peft
from t2l_jax.training import BestConfig, LoopConfig, OptimizerConfig
from t2l_jax.training import run as run_module
from t2l_jax.training import sft as sft_module
from t2l_jax.training.recipe import ComputeConfig, LoraConfig, Recipe
from t2l_jax.training.run import run

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("material"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    """Embeddings of these tests stay out of the user's cache."""
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2L_CACHE", str(folder.parent / "cache"))
        assert run(recipe, folder) == folder / "model"
    return folder


def test_the_published_model_loads_and_generates(recipe, finished):
    model = t2l_jax.load(finished / "model")
    assert (model.config.base, model.config.base_name, model.config.prompt) == (recipe.base, "org/tiny", "instance")
    assert model.config.hypernet == replace(recipe.hypernet, task=replace(recipe.hypernet.task, dim=16))
    files = {"config.json", "model.safetensors", "README.md", "descriptions.json.gz"}
    assert {path.name for path in (finished / "model").iterdir()} == files
    trained = read_tasks(recipe.tasks[0])["train"]
    assert model.descriptions.trained == tuple(task.descriptions[0] for task in trained)
    assert "on 2 tasks" in (finished / "model" / "README.md").read_text()
    adapters = model.generate(["say the first word", "say the last word"])
    assert adapters.batch_shape == (2,)
    assert adapters.spec == model.load_base().config.lora_spec(rank=2)
    assert all(np.all(np.isfinite(side)) for w in adapters.weights.values() for side in w.values())
    b = adapters.weights["v_proj"]["b"]
    assert np.any(b[0])  # it was trained: at the start B is zero
    assert np.any(b[0] != b[1])


def test_validation_is_on_tasks_seen_and_unseen(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert sum("seen/exact" in record for record in records) == 1
    assert sum("unseen tasks/exact" in record for record in records) == 1


def test_a_finished_run_is_published_again_without_training(recipe, finished):
    before = snapshot(finished / "model"), (finished / "metrics.jsonl").read_bytes()
    run(recipe, finished)
    assert (snapshot(finished / "model"), (finished / "metrics.jsonl").read_bytes()) == before


def test_the_run_folder_says_where_it_ran_and_how(finished):
    """Two tasks: two of the eight devices."""
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.json", "environment.json", "curves.png", "checkpoints", "best", "tensorboard"} <= names
    (session,) = json.loads((finished / "environment.json").read_text())["sessions"][:1]
    assert session["devices"]["used"] == 2


def test_an_encoders_adapter_is_published_with_the_hypernetwork(recipe, minilm, tmp_path, monkeypatch):
    """Whatever was trained: here, nothing was."""
    monkeypatch.setattr(run_module, "train", lambda trainee, *_: trainee.init(jax.random.key(0)))
    loaded = SentenceEncoder.load(resolve(minilm))
    save_encoder_adapter(tmp_path / "encoder", loaded.model[0].auto_model, str(minilm))  # adapts `loaded` too
    adapting = replace(recipe, encoder=str(tmp_path / "encoder"))
    published = run(adapting, tmp_path / "run")
    model = t2l_jax.load(published)
    assert (model.config.encoder, model.encoder_adapter) == (str(minilm), published / "encoder")
    np.testing.assert_allclose(model.encoder.embed(["say one"]), loaded.embed(["say one"]), atol=1e-4)
    weights = tmp_path / "encoder" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(UserError, match=r"another recipe \(read.encoder differs\)"):
        run(adapting, tmp_path / "run")


def test_a_run_begins_from_a_published_model_and_goes_on_with_it_only(recipe, finished, tmp_path):
    """A learning rate of almost nothing leaves the weights that it began with."""
    first = shutil.copytree(finished / "model", tmp_path / "first")
    net = replace(recipe.hypernet, dropout=0.0)  # no shape of weights
    still = replace(recipe, init_from=str(first), hypernet=net, optimizer=OptimizerConfig(learning_rate=1e-12))
    second = run(still, tmp_path / "second")
    old, new = (jax.tree.leaves(t2l_jax.load(folder).variables) for folder in (first, second))
    for a, b in zip(old, new, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    run(still, tmp_path / "second")
    other = t2l_jax.load(first)
    t2l_jax.io.published.save_model(first, other.config, jax.tree.map(lambda leaf: 2 * leaf, other.variables), "")
    with pytest.raises(UserError, match=r"another recipe \(read.init differs\)"):
        run(still, tmp_path / "second")


def test_the_chat_template_of_the_model_that_a_run_begins_from(recipe, finished, tmp_path, monkeypatch):
    """It writes the prompts, and is published with the new model."""
    template = "{% for turn in messages %}say {{ turn.content }}{% endfor %}"
    there = t2l_jax.load(finished / "model")
    t2l_jax.io.published.save_model(tmp_path / "first", there.config, there.variables, "", chat_template=template)
    templates, read = [], sft_module.read_material

    def read_material(recipe, kind, tokenizer, encoder):
        templates.append(tokenizer.chat_template)
        return read(recipe, kind, tokenizer, encoder)

    monkeypatch.setattr(sft_module, "read_material", read_material)
    published = run(replace(recipe, init_from=str(tmp_path / "first")), tmp_path / "second")
    assert templates == [template]
    assert t2l_jax.load(published).chat_template == template
    (tmp_path / "first" / "chat_template.jinja").write_text(template + "red")
    with pytest.raises(UserError, match=r"another recipe \(read.init differs\)"):
        run(replace(recipe, init_from=str(tmp_path / "first")), tmp_path / "second")


def test_oracles_are_trained_each_on_its_own_task(recipe, tmp_path):
    """They begin equal in B; after three steps no two of them are."""
    out = run(replace(recipe, trainee="oracles"), tmp_path / "run")
    oracles = find_baselines(None, out).oracles
    assert sorted(oracles) == ["first", "last"]
    one, other = (load_peft(path).weights["v_proj"]["b"] for path in oracles.values())
    assert np.any(one)
    assert np.any(one != other)


def test_a_run_that_goes_on_replaces_its_adapters(recipe, tmp_path):
    """Stopped after a step, the run writes what it has; ended, what it has then."""
    whole = replace(recipe, trainee="multitask", loop=LoopConfig(steps=12, validate_every=4))
    early = load_peft(run(replace(whole, loop=replace(whole.loop, stop_after=1)), tmp_path / "run"))
    late = load_peft(find_baselines(run(whole, tmp_path / "run"), None).multitask)
    alone = load_peft(run(whole, tmp_path / "alone"))
    assert np.abs(late.weights["q_proj"]["a"] - early.weights["q_proj"]["a"]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, late, alone)


# --- what is refused, and what a run may go on with: without training


class Looker:
    """In place of `train`: what it was given, and an end."""

    def __call__(self, trainee, objective, batches, folder, how, initial=None):
        self.objective, self.how = objective, how
        raise KeyboardInterrupt


@pytest.fixture
def begin(monkeypatch):
    """Begin a run of a recipe in a folder, as far as training."""
    monkeypatch.setattr(run_module, "train", look := Looker())

    def begin(recipe: Recipe, folder: Path) -> Looker:
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder)
        return look

    return begin


def test_a_base_in_8_bits_is_trained_on_and_its_losses_are_nearly_those_of_the_whole_one(recipe, finished, tmp_path):
    smaller = replace(recipe, compute=replace(recipe.compute, base="int8"))
    run(smaller, tmp_path / "run")
    ours, theirs = (
        [
            record["loss"]
            for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "loss" in record
        ]
        for folder in (tmp_path / "run", finished)
    )
    assert ours != theirs
    np.testing.assert_allclose(ours, theirs, rtol=0.03)


def test_a_base_in_bfloat16_is_said_to_be_one(recipe, tmp_path, begin, capfd):
    """Its step is compiled in test_step.py; here, what the recipe makes of the base model and the devices."""
    look = begin(replace(recipe, compute=ComputeConfig("bfloat16", accumulate=2)), tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(look.objective)} == {jnp.dtype("bfloat16")}
    assert look.how.accumulate == 2
    assert "t2l: training on 1 of 8 devices: no more divide its tasks" in capfd.readouterr().err


def test_another_recipe_needs_another_folder(recipe, finished):
    before = snapshot(finished)
    other = replace(recipe, compute=ComputeConfig(base="int8"), loop=replace(recipe.loop, seed=1))
    changes = "compute.base is native there, int8 here, loop.seed is 0 there, 1 here"
    with pytest.raises(UserError, match=rf"another recipe \({changes}\)"):
        run(other, finished)
    assert snapshot(finished) == before


def test_a_folder_with_other_files_is_not_taken(recipe, tmp_path):
    atomic_write(tmp_path / "mine" / "model" / "thesis.txt", "three years of work")
    with pytest.raises(UserError, match="mine: holds files and no run: give another --out"):
        run(recipe, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["model", "thesis.txt"]


def test_how_often_a_run_looks_and_saves_may_change(recipe, tmp_path, begin):
    for loop in (recipe.loop, replace(recipe.loop, log_every=7, checkpoint_every=9)):
        begin(replace(recipe, loop=loop), tmp_path / "run")


def test_a_run_does_not_go_on_with_another_base(recipe, tmp_path, begin):
    mine = replace(recipe, base=str(shutil.copytree(recipe.base, tmp_path / "base")))
    begin(mine, tmp_path / "run")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    os.utime(weights, (0, 0))
    with pytest.raises(UserError, match=r"another recipe \(read.base differs\)"):
        run(mine, tmp_path / "run")


def test_a_run_that_ended_early_may_go_on(recipe, tmp_path, begin):
    for stop_after, last in ((2, 2), (None, 3)):
        look = begin(replace(recipe, loop=replace(recipe.loop, stop_after=stop_after)), tmp_path / "run")
        assert look.how.loop.last == last
        stop = json.loads((tmp_path / "run" / "recipe.json").read_text())["loop"]["stop_after"]
        assert stop == stop_after  # what it says is true of the run that goes on
    cooled = replace(recipe, optimizer=replace(recipe.optimizer, cooldown=1), loop=replace(recipe.loop, stop_after=2))
    begin(cooled, tmp_path / "cooled")
    # The rate fell towards the end at 2.
    with pytest.raises(UserError, match=r"another recipe \(loop.stop_after is 2 there, None here"):
        run(replace(cooled, loop=replace(cooled.loop, stop_after=None)), tmp_path / "cooled")


def test_a_run_does_not_go_on_with_other_tasks(recipe, tmp_path, begin):
    (mine,) = recipe.tasks
    tasks = shutil.copytree(mine, tmp_path / "tasks")
    begin(replace(recipe, tasks=(str(tasks),)), tmp_path / "run")
    file = min(tasks.glob("*/train.jsonl"))
    file.write_text(file.read_text().replace('"output": "', '"output": "not ', 1))
    with pytest.raises(UserError, match=r"another recipe \(read.tasks differs\)"):
        run(replace(recipe, tasks=(str(tasks),)), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("no/such/folder",)}, "no such folder of tasks"),
        ({"batch": BatchConfig(tasks=3)}, "a batch of 3 tasks needs at least 3 training tasks, there are 2"),
        ({"lora": LoraConfig(modules=("lm_head",))}, "no projection lm_head"),
        ({"best": BestConfig(by="seen/bleu")}, r"best\.by is 'seen/bleu'"),
        ({"init_from": "nowhere"}, "nowhere: no such model folder"),
    ],
)
def test_a_recipe_that_cannot_be_run_leaves_no_folder(recipe, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(replace(recipe, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
