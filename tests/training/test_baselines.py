"""The baselines of a run on a tiny base model, by the step that trains the hypernetwork; going on from a model."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_recipe import write_task
from tiny_published import save_base

import t2l_jax
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.tasks import Example, Task, spread
from t2l_jax.errors import UserError
from t2l_jax.evaluation.weights import find_baselines
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.peft import load_peft
from t2l_jax.lora import dense_delta
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training import recipe as recipes
from t2l_jax.training.baselines import TaskChoice, choose_tasks
from t2l_jax.training.recipe import LoraConfig, Recipe, run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("material")
    base = save_base(folder / "base")
    write_task(folder / "tasks", "first", ["say the first word"])
    write_task(folder / "tasks", "last", ["say the last word"])
    write_task(folder / "tasks", "unseen-last", ["answer with the last word"], use="test")
    return Recipe(
        base=str(base),
        base_name="org/tiny",
        encoder=f"last-token:{base}",
        tasks=(str(folder / "tasks"),),
        lora=LoraConfig(rank=2),
        hypernet=HypernetConfig(head="M", latent=8, head_in=16),
        batch=BatchConfig(tasks=2, rows=1, length=48),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=3),
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


def validated(folder: Path) -> set[str]:
    """The names of the validation sets of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key.partition("/")[0] for line in lines for key in line if key.endswith("/exact")}


def test_oracles_of_any_split_are_written_by_task(recipe, tmp_path):
    choice = TaskChoice(splits=("unseen tasks", "train"), only=("*last",))
    out = run(replace(recipe, producer="oracles", choice=choice), tmp_path / "run")
    found = find_baselines(None, out).oracles
    assert sorted(found) == ["last", "unseen-last"]
    one, other = (load_peft(path).weights["v_proj"]["b"] for path in found.values())
    assert np.any(one)
    assert np.any(one != other)
    assert validated(tmp_path / "run") == {"seen"}


def test_oracles_validate_each_task_with_its_own_row(recipe, tmp_path, monkeypatch):
    """`first` comes second here, and the split's own list has other ids."""
    seen = {}

    def look(producer, decoder, base, draw, folder, *, validation, **settings):
        seen.update(validation=validation, batch=draw(0), producer=producer)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", look)
    for name in ("oracles", "one-hot"):
        with pytest.raises(KeyboardInterrupt):
            run(replace(recipe, producer=name), tmp_path / name)
        (held_out,) = seen["validation"]["seen"]
        answers = {}
        for batch in (seen["batch"], held_out):
            for row, task in enumerate(batch.task_ids):
                used = batch.targets[row][batch.weights[row] > 0]
                answers.setdefault(int(task), []).append(set(used.tolist()))
        assert all(trained == tested for trained, tested in answers.values())
        assert answers[0] != answers[1]
        if name == "one-hot":
            np.testing.assert_array_equal(held_out.z, np.eye(2)[held_out.task_ids])


def test_one_lora_for_all_tasks_is_one_folder(recipe, tmp_path):
    out = run(replace(recipe, producer="multitask"), tmp_path / "run")
    assert np.any(load_peft(find_baselines(out, None).multitask).weights["v_proj"]["b"])
    assert validated(tmp_path / "run") == {"seen", "unseen tasks"}


def test_a_one_hot_model_knows_its_tasks_and_no_text(recipe, tmp_path):
    out = run(replace(recipe, producer="one-hot"), tmp_path / "run")
    model = t2l_jax.load(out)
    assert model.config.hypernet.task.dim == 2
    assert json.loads((tmp_path / "run" / "tasks.json").read_text()) == {"tasks": ["first", "last"]}
    known = find_baselines(None, None, tmp_path / "run").one_hot
    assert known.tasks == ("first", "last")
    assert not (tmp_path / "run" / "adapters").exists()
    assert validated(tmp_path / "run") == {"seen"}
    with pytest.raises(UserError, match="cannot be asked with text"):
        model.generate(["say the last word"])


def test_a_run_begins_from_a_published_model(recipe, tmp_path, monkeypatch):
    """A learning rate of almost nothing leaves the weights that it began from."""
    first = run(recipe, tmp_path / "first")
    net = replace(recipe.hypernet, dropout=0.0)  # no shape of weights
    still = replace(recipe, start=str(first), hypernet=net, optimizer=OptimizerConfig(learning_rate=1e-12))
    second = run(still, tmp_path / "second")
    old, new = (jax.tree.leaves(t2l_jax.load(folder).variables) for folder in (first, second))
    for a, b in zip(old, new, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("offset", ["frozen", "learned"])
def test_a_hypernetwork_with_an_offset_begins_as_the_offset(recipe, tmp_path, offset):
    shared = run(replace(recipe, producer="multitask"), tmp_path / "shared")
    net, still = replace(recipe.hypernet, offset=offset), OptimizerConfig(learning_rate=1e-12)
    over = replace(recipe, hypernet=net, offset_from=str(shared), optimizer=still, loop=LoopConfig(steps=1))
    written = t2l_jax.load(run(over, tmp_path / offset)).generate(["say the last word"])[0]
    for name, delta in dense_delta(load_peft(shared)).items():
        assert np.any(delta)
        np.testing.assert_allclose(dense_delta(written)[name], delta, atol=0.01 * np.abs(delta).max())  # of float16


@pytest.mark.parametrize(
    ("offset", "changes", "message"),
    [
        ("frozen", {}, "hypernet.offset is frozen: name the adapter with offset_from"),
        ("none", {"offset_from": "x"}, "offset_from: hypernet.offset is none, make it frozen or learned"),
        ("learned", {"offset_from": "x", "start": "y"}, "offset_from: the model of start has an offset of its own"),
        (
            "learned",
            {"offset_from": "x", "hypernet": HypernetConfig(init="reconstruction", offset="learned")},
            "offset_from: with hypernet.init reconstruction",
        ),
        ("learned", {"offset_from": "x", "producer": "multitask"}, "offset_from: multitask has no offset"),
    ],
)
def test_an_offset_that_would_not_be_used_is_refused(recipe, offset, changes, message):
    with pytest.raises(UserError, match=message):
        replace(recipe, **{"hypernet": replace(recipe.hypernet, offset=offset), **changes})


def test_a_run_goes_on_with_the_start_it_began_from(recipe, tmp_path):
    first = run(replace(recipe, loop=LoopConfig(steps=1)), tmp_path / "first")
    begun = replace(recipe, start=str(first), loop=LoopConfig(steps=1))
    run(begun, tmp_path / "run")
    run(begun, tmp_path / "run")
    weights = load_file(first / "model.safetensors")
    save_file({name: 2 * array for name, array in weights.items()}, first / "model.safetensors")
    with pytest.raises(UserError, match=r"another recipe \(read.start is other\)"):
        run(begun, tmp_path / "run")


def test_one_lora_for_all_tasks_begins_from_a_peft_folder(recipe, tmp_path):
    """Also where its scale is another's: what it does to the kernels stays the same."""
    first = run(replace(recipe, producer="multitask"), tmp_path / "first")
    still = replace(recipe, producer="multitask", optimizer=OptimizerConfig(learning_rate=1e-12))
    for alpha in (16.0, 2.0):
        lora = LoraConfig(rank=2, alpha=alpha)
        second = run(replace(still, start=str(first), lora=lora), tmp_path / str(alpha))
        old, new = (dense_delta(load_peft(folder)) for folder in (first, second))
        for name, delta in old.items():
            assert np.any(delta)
            np.testing.assert_allclose(new[name], delta, atol=1e-6)
    with pytest.raises(UserError, match=r"lora\.rank is 2, the recipe's is 4: make them equal"):
        run(replace(still, start=str(first), lora=LoraConfig(rank=4)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_refused_start_leaves_nothing_behind(recipe, tmp_path):
    first = run(replace(recipe, loop=LoopConfig(steps=1)), tmp_path / "first")
    with pytest.raises(UserError, match=r"lora\.rank is 2, the recipe's is 3"):
        run(replace(recipe, start=str(first), lora=LoraConfig(rank=3)), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_task_identity_begins_from_nothing(recipe):
    with pytest.raises(UserError, match="begins from one, and multitask, but not one-hot"):
        replace(recipe, producer="one-hot", start="a/model")


@pytest.mark.parametrize(
    ("producer", "choice", "message"),
    [
        ("oracles", TaskChoice(splits=("later",)), "there is no split later: choose among train, unseen tasks"),
        ("multitask", TaskChoice(splits=("unseen tasks",)), "only oracles may train on other tasks"),
        ("oracles", TaskChoice(only=("first", "nothing*")), r"choice.only: no task is named like 'nothing\*'"),
        ("oracles", TaskChoice(most=1), "a batch of 2 tasks needs as many training tasks, there are 1"),
    ],
)
def test_a_choice_that_cannot_be_trained_is_refused(recipe, tmp_path, producer, choice, message):
    with pytest.raises(UserError, match=message):
        run(replace(recipe, producer=producer, choice=choice), tmp_path / "run")
    with pytest.raises(UserError, match="most must be at least 1"):
        TaskChoice(most=0)
    both = replace(recipe, producer="oracles", choice=TaskChoice(splits=("train", "unseen tasks")), task_weights=(1.0,))
    with pytest.raises(UserError, match="task_weights are for tasks of train only"):
        run(both, tmp_path / "run")


def test_tasks_that_fit_in_no_row_are_left_out_and_named(recipe, tmp_path):
    own = tmp_path / "tasks"
    write_task(own, "first", ["say the first word"])
    write_task(own, "long", ["say the last word"])
    line = {"input": "one two " * 40, "output": "two"}
    for split in ("train", "test"):
        (own / "long" / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    batch = BatchConfig(tasks=1, rows=1, length=48)
    with pytest.warns(UserWarning, match="1 of 2 training tasks are left out.*48 tokens: long"):
        out = run(replace(recipe, tasks=(str(own),), batch=batch, producer="oracles"), tmp_path / "run")
    assert sorted(find_baselines(None, out).oracles) == ["first"]
    with pytest.raises(UserError, match="no task has an example that fits in a row of 2 tokens"):
        run(replace(recipe, batch=replace(batch, length=2)), tmp_path / "none")


def test_of_each_task_the_first_wordings_are_trained_on():
    task = Task("a", ("one", "two", "three"), train=(Example("x", "y", ("y",)),), test=())
    (found,), _ = choose_tasks({"train": [task]}, (1.0,), TaskChoice(wordings=2), "hypernet")
    assert found.descriptions == ("one", "two")
    with pytest.raises(UserError, match=r"choice\.wordings must be at least 1, got 0"):
        TaskChoice(wordings=0)


def test_tasks_without_training_examples_are_not_trained_on():
    bare = Task("bare", ("do",), train=(), test=(Example("x", "y", ("y",)),))
    splits = {"train": [bare, replace(bare, name="full", train=bare.test)]}
    found, weights = choose_tasks(splits, (2.0, 3.0), TaskChoice(), "multitask")
    assert ([task.name for task in found], weights) == (["full"], (3.0,))
    with pytest.raises(UserError, match="choice: no task with training examples is left"):
        choose_tasks(splits, (1.0, 1.0), TaskChoice(only=("bare",)), "multitask")


def test_most_counts_in_each_split_and_takes_what_an_evaluation_takes():
    def some(name: str, count: int) -> list[Task]:
        one = (Example("x", "y", ("y",)),)
        return [Task(f"{name}{number}", ("do",), train=one, test=one) for number in range(count)]

    splits = {"train": some("a", 10), "unseen": some("b", 7)}
    choice = TaskChoice(splits=("train", "unseen"), most=3)
    found, _ = choose_tasks(splits, (1.0,) * 10, choice, "oracles")
    assert [task.name for task in found] == ["a0", "a3", "a6", "b0", "b2", "b4"]
    assert found == [*spread(splits["train"], 3), *spread(splits["unseen"], 3)]


def test_a_run_that_goes_on_replaces_its_adapters(recipe, tmp_path):
    """Stopped after a step, the run writes what it has; ended, what it has then."""
    whole = replace(recipe, producer="multitask", loop=LoopConfig(steps=12, validate_every=1))
    early = load_peft(run(replace(whole, loop=replace(whole.loop, stop_after=1)), tmp_path / "run"))
    late = load_peft(run(whole, tmp_path / "run"))
    alone = load_peft(run(whole, tmp_path / "alone"))
    assert np.abs(late.weights["q_proj"]["a"] - early.weights["q_proj"]["a"]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, late, alone)
