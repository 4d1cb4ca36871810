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
from tiny_published import save_base, snapshot

import t2l_jax
from t2l_jax.data.batches import BatchConfig
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import LONG_ROW, AttentionConfig, LayerAttention
from t2l_jax.encoder import load_encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.files import atomic_write
from t2l_jax.training import BestConfig, LoopConfig
from t2l_jax.training import recipe as recipes
from t2l_jax.training.baselines import TaskChoice
from t2l_jax.training.recipe import ComputeConfig, LoraConfig, Recipe, run


def write_task(folder: Path, name: str, descriptions: list[str], use: str = "train") -> None:
    """A task that answers every list of words with one of them."""
    path = folder / name
    path.mkdir(parents=True)
    path.joinpath("task.yaml").write_text(json.dumps({"name": name, "descriptions": descriptions, "use": use}))
    lines = [
        {"input": f"one two {colour}", "output": "one" if "first" in name else colour} for colour in ("red", "blue")
    ]
    for split in ("train", "test"):
        path.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Three steps on two of three tasks. The text encoder is the base model itself."""
    folder = tmp_path_factory.mktemp("material")
    base = save_base(folder / "base")
    write_task(folder / "tasks", "first", ["say the first word", "answer with the first word"])
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
        loop=LoopConfig(steps=3, log_every=2, checkpoint_every=2),
    )


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
    assert {path.name for path in (finished / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert "on 2 tasks" in (finished / "model" / "README.md").read_text()
    adapters = model.generate(["say the first word", "say the last word"])
    assert adapters.batch_shape == (2,)
    assert adapters.spec == model.load_base().config.lora_spec(rank=2)
    assert all(np.all(np.isfinite(side)) for w in adapters.weights.values() for side in w.values())
    b = adapters.weights["v_proj"]["b"]
    assert np.any(b[0])  # it was trained: at the start B is zero
    assert np.any(b[0] != b[1])


def test_an_encoders_adapter_is_published_with_the_hypernetwork(recipe, minilm, tmp_path):
    loaded = load_encoder(str(minilm))
    save_encoder_adapter(tmp_path / "encoder", loaded.model[0].auto_model, str(minilm))  # adapts `loaded` too
    adapting = replace(recipe, encoder=str(tmp_path / "encoder"))
    published = run(adapting, tmp_path / "run")
    model = t2l_jax.load(published)
    assert (model.config.encoder, model.encoder_adapter) == (str(minilm), published / "encoder")
    np.testing.assert_allclose(model.encoder.embed(["say one"]), loaded.embed(["say one"]), atol=1e-4)
    with pytest.warns(UserWarning, match="was trained with another text encoder, .* with an adapter: what z means"):
        run(replace(recipe, encoder=str(minilm), start=str(published)), tmp_path / "plain")
    weights = tmp_path / "encoder" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(UserError, match=r"another recipe \(read.encoder is other\)"):
        run(adapting, tmp_path / "run")


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


@pytest.mark.parametrize(
    ("precision", "dtype", "narrow"),
    [("auto", "float32", None), ("float32", "float32", None), ("products", "float32", "bfloat16"),
     ("bfloat16", "bfloat16", None)],
)  # fmt: skip
def test_precision_is_that_of_the_base_model(precision, dtype, narrow):
    """On this CPU `auto` is float32."""
    compute = ComputeConfig(precision, remat=False)
    decoder = compute.decoder(DecoderConfig(8, 4, 1, 4, AttentionConfig(1, 1, 4, layers=(LayerAttention(),))))
    assert (jnp.dtype(compute.base_dtype()), jnp.dtype(decoder.dtype), decoder.remat) == (dtype, dtype, False)
    assert decoder.matmul_dtype == (None if narrow is None else jnp.dtype(narrow))


def test_on_accelerators_auto_is_bfloat16_and_short_rows_attend_whole(monkeypatch):
    config = DecoderConfig(8, 4, 1, 4, AttentionConfig(1, 1, 4, layers=(LayerAttention(),)))
    on_cpu = ComputeConfig().decoder(config).long_row
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert jnp.dtype(ComputeConfig().base_dtype()) == "bfloat16"
    assert on_cpu == LONG_ROW < ComputeConfig().decoder(config).long_row


def test_a_base_in_bfloat16_trains_a_hypernetwork_in_float32(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(recipes, "train", look := Looker(recipes.train))
    run(replace(recipe, compute=ComputeConfig("bfloat16", accumulate=2)), tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(look.base)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(look.variables)} == {jnp.dtype("float32")}
    assert "t2l: training on 1 of 8 devices: no more divide its tasks" in capfd.readouterr().err


def interrupt(*_, **__):
    raise KeyboardInterrupt


class Looker:
    """`train`, with what went in and came out."""

    def __init__(self, train) -> None:
        self.train = train

    def __call__(self, producer, decoder, base, *arguments, **settings):
        self.base, self.variables = base, self.train(producer, decoder, base, *arguments, **settings)
        return self.variables


def test_another_recipe_needs_another_folder(recipe, finished):
    before = snapshot(finished)
    changes = "instruction_share is 0.0 there, 1.0 here, loop.seed is 0 there, 1 here"
    with pytest.raises(UserError, match=rf"another recipe \({changes}\)"):
        run(replace(recipe, instruction_share=1.0, loop=replace(recipe.loop, seed=1)), finished)
    assert snapshot(finished) == before


def test_a_folder_with_other_files_is_not_taken(recipe, tmp_path):
    atomic_write(tmp_path / "mine" / "model" / "thesis.txt", "three years of work")
    with pytest.raises(UserError, match="mine: holds files and no run: give another --out"):
        run(recipe, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["model", "thesis.txt"]


def test_how_often_a_run_looks_and_saves_may_change(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "train", interrupt)
    for loop in (recipe.loop, replace(recipe.loop, log_every=7, checkpoint_every=9)):
        with pytest.raises(KeyboardInterrupt):
            run(replace(recipe, loop=loop), tmp_path / "run")


def test_a_run_does_not_go_on_with_another_base(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "train", interrupt)
    mine = replace(recipe, base=str(shutil.copytree(recipe.base, tmp_path / "base")))
    with pytest.raises(KeyboardInterrupt):
        run(mine, tmp_path / "run")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    os.utime(weights, (0, 0))
    with pytest.raises(UserError, match=r"another recipe \(read.base .* is other\)"):
        run(mine, tmp_path / "run")


def test_a_run_that_ended_early_may_go_on(recipe, tmp_path, monkeypatch):
    ends = []

    def look(*arguments, loop, **settings):
        ends.append(loop.last)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", look)
    for stop_after in (2, None):
        with pytest.raises(KeyboardInterrupt):
            run(replace(recipe, loop=replace(recipe.loop, stop_after=stop_after)), tmp_path / "run")
        stop = json.loads((tmp_path / "run" / "recipe.json").read_text())["loop"]["stop_after"]
        assert stop == stop_after  # what it says is true of the run that goes on
    assert ends == [2, 3]
    cooled = replace(recipe, optimizer=replace(recipe.optimizer, cooldown=1), loop=replace(recipe.loop, stop_after=2))
    with pytest.raises(KeyboardInterrupt):
        run(cooled, tmp_path / "cooled")
    # The rate fell towards the end at 2.
    with pytest.raises(UserError, match=r"another recipe \(loop.stop_after is 2 there, None here"):
        run(replace(cooled, loop=replace(cooled.loop, stop_after=None)), tmp_path / "cooled")


def test_a_run_does_not_go_on_with_other_tasks(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "train", interrupt)
    (mine,) = recipe.tasks
    tasks = shutil.copytree(mine, tmp_path / "tasks")
    with pytest.raises(KeyboardInterrupt):
        run(replace(recipe, tasks=(str(tasks),)), tmp_path / "run")
    file = min(tasks.glob("*/train.jsonl"))
    file.write_text(file.read_text().replace('"output": "', '"output": "not ', 1))
    with pytest.raises(UserError, match=r"another recipe \(read.tasks is other\)"):
        run(replace(recipe, tasks=(str(tasks),)), tmp_path / "run")


def test_without_anything_to_validate_on_there_is_no_best(recipe, tmp_path):
    (mine,) = recipe.tasks
    tasks = shutil.copytree(mine, tmp_path / "tasks")
    for path in tasks.glob("*/test.jsonl"):
        path.write_text("")
    with pytest.raises(UserError, match="best: no task has test examples to validate on"):
        run(replace(recipe, tasks=(str(tasks),), best=BestConfig(patience=2)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tasks_that_results_are_reported_on_do_not_choose_the_weights(recipe, tmp_path):
    (mine,) = recipe.tasks
    tasks = shutil.copytree(mine, tmp_path / "tasks")
    for card in tasks.glob("*/task.yaml"):
        if json.loads(card.read_text())["use"] == "train":
            (card.parent / "test.jsonl").write_text("")
    with pytest.raises(UserError, match="no training task has test examples"):
        run(replace(recipe, tasks=(str(tasks),)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("no/such/folder",)}, "no such folder of tasks"),
        ({"batch": BatchConfig(tasks=3)}, "a batch of 3 tasks needs as many training tasks, there are 2"),
        ({"instruction_share": 1.5}, "instruction_share must be between 0 and 1, got 1.5"),
        ({"lora": LoraConfig(modules=("lm_head",))}, "no projection lm_head"),
        ({"compute": ComputeConfig(accumulate=3)}, "a batch of 2 tasks cannot be cut into 3 equal parts"),
        ({"best": BestConfig(by="unseen/exact")}, r"best.by is 'unseen/exact': write a validation set \(seen, unseen"),
        (
            {"hypernet": HypernetConfig(task=TaskEncoderConfig(dim=7))},
            "task.dim is 7, the width of z is 16",
        ),
        ({"choice": TaskChoice(only=("first*", "fist*"))}, r"choice.only: no task is named like 'fist\*': correct or"),
        ({"best": BestConfig(by="seen/bleu")}, "best.by is 'seen/bleu': .* and a metric .*cross_entropy, exact"),
    ],
)
def test_a_recipe_that_cannot_be_run_leaves_no_folder(recipe, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(replace(recipe, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("share", "modes"), [(0.0, ["instance"]), (1.0, ["instruction"]), (0.5, ["instance", "instruction"])]
)
def test_what_the_base_model_reads_in_each_prompt_mode(recipe, tmp_path, monkeypatch, share, modes):
    """The instance alone, or a wording of the task before it: a training wording in training, a new one after."""
    drawn = []

    def look(producer, decoder, base, draw, folder, *, validation, **settings):
        drawn.extend([[draw(n) for n in range(20)], validation])
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "train", look)
    with pytest.raises(KeyboardInterrupt):
        run(replace(recipe, instruction_share=share), tmp_path / "run")
    tokenizer = load_tokenizer(recipe.base)
    batches, validation = drawn

    def texts(batch, task: int) -> set[str]:
        at = list(batch.task_ids).index(task)
        tokens, segments = batch.tokens[at, 0], batch.segments[at, 0]
        shared = (tokens[segments == 1],)
        members = [np.concatenate([*shared, tokens[segments == member]]) for member in range(2, segments.max() + 1)]
        return {tokenizer.decode(member) for member in members}

    found = set().union(*(texts(batch, 0) for batch in batches))
    wanted = {
        "instance": {f"system user one two {colour} assistant one" for colour in ("red", "blue")},
        "instruction": {
            "system user say the first word one two red assistant one",
            "system user answer with the first word one two blue assistant one",
        },
    }
    assert found == set().union(*(wanted[mode] for mode in modes))
    names = [f"{split}{f', {mode}' * (len(modes) > 1)}" for split in ("seen", "unseen tasks") for mode in modes]
    assert list(validation) == names
    for name, mode in zip(names, 2 * modes, strict=True):
        (batch,) = validation[name]
        assert batch.tokens.shape == (2, 1, 48)
        np.testing.assert_allclose(batch.weights.sum(), 1, rtol=1e-6)
        wording = "answer with the last word " * (mode == "instruction")
        if name.startswith("unseen"):
            answers = {f"system user {wording}one two {colour} assistant {colour}" for colour in ("red", "blue")}
            assert texts(batch, 0) == answers
