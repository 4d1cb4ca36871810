"""`t2l train` and `t2l evaluate`: what was asked for is run, or refused in one line."""

import importlib
from pathlib import Path

import pytest
from command_line import ROOT, assert_refused, run

from t2l_jax.cli import entry
from t2l_jax.training import run as run_module
from t2l_jax.training.recipe import Recipe


def test_train_starts_from_the_recipe_of_the_file(capsys, place, monkeypatch):
    runs, trusted = [], []

    def note(*arguments, trust_remote_code):
        runs.append(arguments)
        trusted.append(trust_remote_code)
        return arguments[1] / "model"

    monkeypatch.setattr(run_module, "run", note)
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


RECIPES = ROOT / "experiments" / "recipes"
FILES = {
    **{"smollm2_words": ("words",), "smollm2_family": ("family",), "multitask": ("family",), "oracles": ("family",)},
    **{"library": ("family",), "paper_mistral": ("tasks",), "paper_llama": ("tasks",), "paper_gemma": ("tasks",)},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.py")))
def test_every_file_of_recipes_is_one(monkeypatch, name):
    """A file for `t2l train`, or a module whose recipes are checked by making them."""
    if name in FILES:
        assert entry.read_recipe(str(RECIPES / f"{name}.py"), Recipe).tasks == FILES[name]
        return
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module(f"experiments.recipes.{name}")
    if name == "packaged":
        assert all(isinstance(recipe, Recipe) for recipe in module.STAGES.values())
        assert module.train_steps(module.Packaged())["stage9"].tasks == ("family",)
    else:
        assert module.WordingEncoder(out=Path("out")).init_from is None  # the one other: it begins from MiniLM


RECIPE = (
    "from t2l_jax.data.batches import BatchConfig\nfrom t2l_jax.hypernet import HypernetConfig\n"
    "from t2l_jax.training.recipe import LoraConfig, Recipe\nfrom t2l_jax.training import LoopConfig\nRECIPE = Recipe("
)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "exp.py: a recipe file of this command must define RECIPE"),
        ("RECIPE = {'steps': 3}\n", "exp.py: a recipe file of this command must define RECIPE"),
        ("import os\nRECIPE = = 3\n", "exp.py, line 2: SyntaxError: invalid syntax"),
        ("import os\n\nos.nothing()\n", "exp.py, line 3: AttributeError"),
        ("import sys\nsys.exit(0)\n", "exp.py, line 2: SystemExit: 0"),
        ("raise GeneratorExit\n", "exp.py, line 1: GeneratorExit"),
        (
            "class E(BaseException):\n    def __str__(self): return 1 / 0\nraise E\n",
            "exp.py, line 3: <run_path>.E: <exception str() failed>",
        ),
        (RECIPE + "lora=(8, 16))", "recipe: field lora must be an object of fields, got (8, 16)"),
        (RECIPE + "optimizer='adamw')", "recipe: field optimizer must be an object of fields, got 'adamw'"),
        (RECIPE + "compute=None)", "recipe: field compute must be an object of fields, got None"),
        (RECIPE + "instruction_share=b'x')", "recipe: field instruction_share: must be a valid number, got b'x'"),
        (RECIPE + "tasks='words')", "recipe: field tasks: must be a valid tuple, got 'words'"),
        (RECIPE + "task_weights=(1.0, '2'))", "recipe: field task_weights.1: must be a valid number, got '2'"),
        (RECIPE + "base=None)", "recipe: field base: must be a valid string, got None"),
        (RECIPE + "lora=LoraConfig(rank='8'))", "lora: field rank: must be a valid integer, got '8'"),
        (RECIPE + "lora=LoraConfig(modules='q_proj'))", "lora: field modules: must be a valid tuple"),
        (RECIPE + "lora=LoraConfig(rslora='no'))", "lora: field rslora: must be a valid boolean, got 'no'"),
        (RECIPE + "batch=BatchConfig(tasks=2.0))", "batch: field tasks: must be a valid integer, got 2.0"),
        (RECIPE + "hypernet=HypernetConfig(dropout=float('nan')))", "hypernet: field dropout: must be a finite number"),
        (RECIPE + f"{'x' * 9999}=1)", "TypeError: Recipe.__init__() got an unexpected keyword argument 'xxx"),
        (RECIPE + "hypernet=HypernetConfig(latent=2**40))", "hypernet: field latent: must be at most"),
        (RECIPE + "loop=LoopConfig(seed=10**5000))", "loop: field seed: "),
        (
            "from t2l_jax.training import LoopConfig\nLoopConfig(steps=0)\n",
            "line 2: loop: field steps: must be",
        ),
    ],
)
def test_train_refuses_a_file_that_is_no_recipe(capsys, place, code, message):
    Path("exp.py").write_text(code)
    assert_refused(capsys, message, "train", "exp.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.py",), "nowhere.py: no such recipe file"),
        (("exp",), "exp: a recipe is a Python file"),
        (("exp.py", "--distributed", "on"), "--distributed: 'on' is not auto, off or HOST:PORT"),
        (("exp.py", "--steps", "0"), "loop: field steps: must be at least 1, got 0"),
        (("exp.py", "--optimizer.learning-rate", "nan"), "optimizer: field learning_rate: must be a finite number"),
        (("exp.py", "--optimizer.clip", "inf"), "optimizer: field clip: must be a finite number, got inf"),
        (("exp.py", "--lora.alpha", "-1"), "lora: field alpha: must be above 0, got -1.0"),
        (("exp.py", "--seed", "9" * 20), "loop: field seed: "),
        (("exp.py", "--checkpoint-every", "-3"), "loop: field checkpoint_every: must be at least 1"),
        (("exp.py", "--batch.length", "9" * 12), "batch: field length: must be at most 1048576"),
        (("exp.py", "--task-weights", "nan"), "recipe: field task_weights.0: must be a finite number, got nan"),
        (("x" * 300 + ".py",), "File name too long"),
        (("exp.py", "--tasks", "nowhere", "--base", "models/base"), "nowhere: no such folder of tasks"),
        (("./exp.py", "--tasks", "nowhere", "--base", "models/base"), "nowhere: no such folder of tasks"),
        (("exp.py", "--hypernet.latent", "6"), "hypernet.latent must be a multiple of 4, got 6"),
        (("exp.py", "--tasks", "full", "--base", "models/base"), "neither a task.yaml nor folders of tasks"),
        (("exp.py", "--tasks", "tasks", "--base", "nowhere"), "nowhere: no such model folder"),
        (("exp.py", "--tasks", "tasks", "--base", "models/base", "--batch.tasks", "3"), "a batch of 3 tasks"),
        (
            ("exp.py", "--tasks", "tasks", "--base", "models/base", "--lora.rank", "0"),
            "lora: field rank: must be",
        ),
        (("exp.py", "--tasks", "tasks", "--base", "models/base", "--lora.modules", "c_attn"), "no projection c_attn"),
    ],
)
def test_train_refuses_and_leaves_no_run(capsys, place, monkeypatch, tmp_path_factory, arguments, message):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert_refused(capsys, message, "train", *arguments)


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
        (
            ("models/good", "--tasks", "tasks", "--examples", "0"),
            "field examples: must be at least 1, got 0",
        ),
        (("nowhere", "--tasks", "tasks"), "nowhere: no such model folder"),
        (("models/good", "--tasks", "tasks", "--multitask", "x" * 300), "File name too long"),
        (("models/good", "--tasks", "tasks", "--oracles", "x" * 300), "File name too long"),
        (("models/good", "--tasks", "tasks", "--one-hot", "x" * 300), "File name too long"),
        (("models/good", "--tasks", "x" * 300), "File name too long"),
        (("x" * 300, "--tasks", "tasks"), "File name too long"),
        (("models/good", "--tasks", "tasks", "--max-new-tokens", "9" * 12), "field max_new_tokens: must be at most"),
    ],
)
def test_evaluate_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "evaluate", *arguments)
