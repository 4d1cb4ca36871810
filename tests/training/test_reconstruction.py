"""Whole runs of reconstruction: from a library to a published model, resumed, and on to SFT and back."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import run as t2l
from tiny_library import NAMES, deltas, random_adapters, save_library
from tiny_published import NET, WIDTH_Z, HashEncoder, save_published, tiny_config
from tiny_recipe import make_recipe

import t2l_jax
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.io.library import open_library
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training import reconstruction as module
from t2l_jax.training import run as run_module
from t2l_jax.training.objectives import ReconstructionConfig
from t2l_jax.training.recipe import ReconstructionRecipe
from t2l_jax.training.reconstruction import read_wordings, split
from t2l_jax.training.run import run

FAST = OptimizerConfig(learning_rate=0.02, weight_decay=0.0, warmup=0.1)


@pytest.fixture(autouse=True)
def _no_models(tmp_path, monkeypatch) -> None:
    """A text encoder that needs no model, and a cache of the test's own."""
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_module, "load_encoder", lambda *_, **__: HashEncoder())


def recipe_of(library: Path, steps: int = 4, every: int = 2, **changes) -> ReconstructionRecipe:
    net = ReconstructionRecipe().hypernet
    small = replace(net, latent=16, head_in=16, dropout=0.0)
    loop = LoopConfig(steps=steps, validate_every=every, checkpoint_every=every, log_every=every)
    base = {
        "library": str(library),
        "base_name": "org/tiny",
        "hypernet": small,
        "optimizer": FAST,
        "loop": loop,
        "batch_tasks": 2,
    }
    return ReconstructionRecipe(**base | changes)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(folder: Path, key: str) -> float:
    return next(record[key] for record in reversed(metrics(folder)) if key in record)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("loss", ["factors", "canonical", "delta", "gram"])
def test_every_loss_brings_the_deltas_nearer_to_the_librarys(tmp_path, loss):
    library = save_library(tmp_path / "library")
    objective = ReconstructionConfig(loss)
    recipe = recipe_of(library, steps=60, every=60, trainee="one-hot", objective=objective, batch_tasks=64)
    model = t2l_jax.load(run(recipe, tmp_path / "run"))
    first, end = metrics(tmp_path / "run")[0]["relative_error"], last(tmp_path / "run", "seen/relative_error")
    assert end < 0.8 * first
    names = json.loads((tmp_path / "run" / "tasks.json").read_text())["tasks"]
    assert names == sorted(NAMES)
    written, wanted = model.adapters(Condition(z=np.eye(5, dtype=np.float32))), random_adapters(5)
    errors = []
    for place, name in enumerate(names):
        own, other = deltas(written[place]), deltas(wanted[NAMES.index(name)])
        error = sum(np.sum((own[module] - other[module]) ** 2) for module in own)
        errors.append(np.sqrt(error / sum(np.sum(delta**2) for delta in other.values())))
    np.testing.assert_allclose(np.mean(errors), end, rtol=0.02)  # the weights are published in float16


def test_held_out_tasks_choose_the_weights(tmp_path):
    recipe = recipe_of(save_library(tmp_path / "library"), held_out=2)
    model = t2l_jax.load(run(recipe, tmp_path / "run"))
    held_out = [r for r in metrics(tmp_path / "run") if "held-out tasks/relative_error" in r]
    assert [r["step"] for r in held_out] == [2, 4]
    assert model.config.hypernet.standardised
    assert model.config.lora.scale == pytest.approx(16 / np.sqrt(2))
    packed = open_library(tmp_path / "library", tmp_path / "cache" / "libraries", alpha=16.0, rslora=True)
    mean, std = packed.statistics(np.asarray([1, 3, 4]))  # the other two are held out
    constants = model.variables["constants"]
    for name, wanted in (("mean", mean), ("std", std)):
        for own, other in zip(jax.tree.leaves(constants[name]), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("no_picture")
def test_a_resumed_run_has_the_same_losses(tmp_path):
    library = save_library(tmp_path / "library")
    run(recipe_of(library), tmp_path / "whole")
    early = recipe_of(library)
    run(replace(early, loop=replace(early.loop, stop_after=2)), tmp_path / "parts")
    run(early, tmp_path / "parts")
    whole, parts = ([{k: v for k, v in r.items() if "per_second" not in k} for r in metrics(tmp_path / n)]
                    for n in ("whole", "parts"))  # fmt: skip
    assert whole == parts


@pytest.mark.usefixtures("no_picture")
def test_a_run_is_not_resumed_on_another_library(tmp_path):
    library = save_library(tmp_path / "library")
    run(recipe_of(library, steps=2), tmp_path / "run")
    (library / "beta" / "description.txt").write_text("say something else\n")
    with pytest.raises(UserError, match=r"read\.descriptions differs"):
        run(recipe_of(library, steps=2), tmp_path / "run")
    save_library(tmp_path / "library2", random_adapters(5, seed=5))
    with pytest.raises(UserError, match=r"read\.library differs"):
        run(recipe_of(tmp_path / "library2", steps=2), tmp_path / "run")


@pytest.mark.usefixtures("no_picture")
def test_reconstruction_goes_on_to_sft_and_sft_to_reconstruction(tmp_path):
    """With the head's bias and constants of the model that it begins from."""
    sft = make_recipe(tmp_path / "material")
    net = sft.hypernet
    library = save_library(tmp_path / "library")
    sizes = {"latent": net.latent, "head_in": net.head_in, "dropout": net.dropout, "head": net.head}
    first = recipe_of(library)
    first = replace(first, hypernet=replace(first.hypernet, **sizes), base=sft.base, base_name=sft.base_name)
    run(first, tmp_path / "first")
    tuned = replace(sft, init_from=str(tmp_path / "first" / "model"))
    model = t2l_jax.load(run(tuned, tmp_path / "tuned"))
    assert model.config.hypernet.standardised
    assert model.config.hypernet.head_bias == "none"
    back = replace(first, init_from=str(tmp_path / "plain" / "model"))
    run(sft, tmp_path / "plain")
    model = t2l_jax.load(run(back, tmp_path / "back"))
    assert not model.config.hypernet.standardised
    assert model.config.hypernet.head_bias == "separate"
    assert last(tmp_path / "back", "seen/relative_error") < metrics(tmp_path / "back")[0]["relative_error"]


def test_a_model_with_an_offset_is_no_beginning(tmp_path, capsys):
    there = tiny_config(hypernet=replace(NET, offset="frozen"))
    start = str(save_published(tmp_path / "model", there))
    library = str(save_library(tmp_path / "library"))
    out = str(tmp_path / "run")
    status, _, err = t2l(capsys, "reconstruct", library, "--base-name", "org/tiny", "--init-from", start, "--out", out)
    assert (status, err.count("\n")) == (2, 1)
    assert f"init_from: {start} adds an offset to every output" in err
    assert "begin from a model without an offset" in err
    assert not (tmp_path / "run").exists()


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    library = open_library(save_library(tmp_path / "library"), tmp_path / "cache", alpha=16.0, rslora=True)
    conditions = [Condition(task=np.full(3, n, np.int32)) for n in range(4)]
    draws = [module.TargetSampler(library, np.arange(4), conditions, 2, seed).draw for seed in (0, 0, 1)]
    tasks = [[tuple(draw(step).condition.task.tolist()) for step in range(20)] for draw in draws]
    assert tasks[0] == tasks[1] != tasks[2]
    assert {task for drawn in tasks[0] for task in drawn} == {0, 1, 2, 3}
    assert all(len(set(drawn)) == 2 for drawn in tasks[0])
    batch = draws[0](3)
    np.testing.assert_array_equal(
        batch.target.weights["q_proj"]["a"], library[batch.condition.task].weights["q_proj"]["a"]
    )


def test_held_out_tasks_are_evenly_spaced_and_two_are_left(tmp_path):
    train, others = split(10, 3)
    assert sorted([*train, *others]) == list(range(10))
    assert others.tolist() == [0, 3, 6]
    with pytest.raises(UserError, match="held_out: of 5 adapters 4 are held out"):
        split(5, 4)


def test_tasks_without_a_description_are_refused(tmp_path):
    library = open_library(
        save_library(tmp_path / "library", described=False), tmp_path / "cache", alpha=16.0, rslora=True
    )
    with pytest.raises(UserError, match="5 of 5 tasks of the library, such as alpha, have no description"):
        read_wordings(library, (), None)


def test_descriptions_come_from_a_task_source_first(tmp_path):
    save_library(tmp_path / "library")
    task = tmp_path / "tasks" / "beta"
    task.mkdir(parents=True)
    (task / "task.yaml").write_text("name: beta\ndescriptions: [one, two, three]\n")
    for name in ("train", "test"):
        (task / f"{name}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    library = open_library(tmp_path / "library", tmp_path / "cache", alpha=16.0, rslora=True)
    wordings = read_wordings(library, (str(tmp_path / "tasks"),), 2)
    assert (wordings[0].train, wordings[0].unseen) == (("say alpha",), "answer with alpha")
    assert wordings[1].train == ("one", "two")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--base-name", "org/other"), "its adapters are for org/tiny, base_name is org/other: name their base model"),
        (("--trainee", "one-hot", "--held-out", "1"), "held_out: one-hot writes adapters for its own tasks only"),
        (("--hypernet.init", "sft", "--hypernet.no-standardised"), "init sft begins with A = B = 0"),
        (("--trainee", "oracles"), "trainee: oracles cannot reconstruct a library: choose among"),
        (("--hypernet.offset", "learned"), "hypernet.offset: adapters are reconstructed whole"),
        (("--held-out", "4"), "held_out: of 5 adapters 4"),
        (("--accumulate", "3", "--batch-tasks", "4"), "accumulate: 4 tasks cannot be cut into 3"),
        (("--best.by", "held-out tasks/loss"), "best.by"),
        (("--objective.loss", "gram", "no.py"), "no.py: no such recipe file"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    library = save_library(tmp_path / "library")
    status, _, err = t2l(
        capsys, "reconstruct", str(library), "--base-name", "org/tiny", *options, "--out", str(tmp_path / "run")
    )
    assert status == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_picture")
def test_the_command_takes_a_recipe_file_and_flags(tmp_path, capsys):
    library = save_library(tmp_path / "library")
    file = tmp_path / "small.py"
    file.write_text(
        "from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig\n"
        "from t2l_jax.training import LoopConfig\n"
        "from t2l_jax.training.recipe import ReconstructionRecipe\n"
        f"NET = HypernetConfig(TaskEncoderConfig(dim={WIDTH_Z}), latent=16, head_in=16, init='reconstruction')\n"
        "RECIPE = ReconstructionRecipe(hypernet=NET, loop=LoopConfig(steps=9))\n"
    )
    out = str(tmp_path / "run")
    status, printed, err = t2l(
        capsys, "reconstruct", str(library), str(file), "--steps", "2", "--base-name", "org/tiny", "--out", out
    )
    assert status == 0, err
    assert "written to" in printed
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["loop"]["steps"] == 2
    status, _, err = t2l(capsys, "train", str(file), "--out", str(tmp_path / "other"))
    assert status == 2
    assert "must define RECIPE, a t2l_jax.training.recipe.Recipe" in err
