"""The command line as a newcomer meets it: what is asked for happens, and what is wrong is said in one line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMANDS, MODEL, ROOT, assert_refused, run
from tiny_published import HashEncoder

import t2l_jax
from t2l_jax import cli
from t2l_jax.decoder.generation import Sampling


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


@pytest.mark.parametrize(("model", "texts"), [("both", ["Say a."]), ("instance", [])])
def test_chat_with_a_model_that_reads_instances_has_an_adapter_for_every_line(capsys, place, monkeypatch, model, texts):
    source = [part for text in texts for part in ("--description", text)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("red blue\none two\n\n"))
    status, out, err = run(capsys, "chat", "--model", f"models/{model}", *source, "--max-new-tokens", "6")
    assert (status, err) == (0, "")
    loaded = t2l_jax.load(f"models/{model}")
    llm, expected = loaded.load_base(), []
    for text in ("red blue", "one two"):
        adapter = loaded.generate(texts or None, [text])[0]
        expected += llm.chat([text], adapter, Sampling(6))
    assert out == "".join(f"{answer}\n" for answer in expected)
    assert out != "".join(f"{answer}\n" for answer in llm.chat(["red blue", "one two"], sampling=Sampling(6)))


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
        (("--adapter", "models/adapter-cut"), "adapter_model.safetensors: damaged or cut short"),
        (("--adapter", "x" * 300), "File name too long"),
        (("--temperature", "nan"), "sampling: field temperature: must be a finite number, got nan"),
        (("--top-p", "nan"), "sampling: field top_p: must be a finite number, got nan"),
        (("--max-new-tokens", "9" * 12), "sampling: field max_new_tokens: must be at most 131072"),
        (("--seed", "9" * 20), "--seed must be from 0 to 2147483647, got 99999999999999999999"),
        (("--seed", "-1"), "--seed must be from 0 to 2147483647"),
        (("--temperature", "-1"), "sampling: field temperature: must be at least 0"),
        (("--top-p", "0"), "sampling: field top_p: must be above 0"),
        (("--max-new-tokens", "0"), "sampling: field max_new_tokens: must be at least 1"),
    ],
)
def test_chat_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "chat", *MODEL, *arguments)


@pytest.mark.parametrize("source", [MODEL, ("--encoder", "another")])
def test_embed(capsys, place, source):
    assert run(capsys, "embed", "Say a", "Say b", *source)[:2] == (0, "2 embeddings of width 12 written to z.npy\n")
    np.testing.assert_array_equal(np.load("z.npy", allow_pickle=False), HashEncoder().embed(["Say a", "Say b"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give at least one text"),
        (("Say a.", "--encoder", "minilm", *MODEL), "not both"),
        (("Say a.", "", *MODEL), "description 2 is empty"),
        (("Say a.", "--out", "file/z.npy", *MODEL), "cannot be written"),
        (("Say a.", "--out", "full", *MODEL), "full exists already"),
        (("Say a.", "--out", "file", "--model", "nowhere"), "file exists already"),  # before a model is loaded
        (("Say a.", "--out", "x" * 300, *MODEL), "File name too long"),
    ],
)
def test_embed_refuses(capsys, place, arguments, message):
    assert_refused(capsys, message, "embed", *arguments)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second is Python's in the locale C
def test_chat_refuses_bytes_that_are_no_text(capsys, place, monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red \xff blue\n"), "utf-8", errors))
    assert_refused(capsys, "not UTF-8" if errors != "strict" else "not utf-8 text", "chat", *MODEL)


def test_a_name_that_no_terminal_can_show_is_written_and_printed_escaped(capsys, place):
    status, out, err = run(capsys, "generate", "Say a.", *MODEL, "--out", os.fsdecode(b"a\xff"))
    assert (status, out, err) == (0, "adapter for org/tiny written to a\\udcff\n", "")
    assert Path(os.fsdecode(b"a\xff"), "adapter_config.json").is_file()


def test_models(capsys, place, monkeypatch):
    status, out, _ = run(capsys, "models", "models/good")
    assert status == 0
    assert out.startswith("models/good\n  base model    org/tiny")
    assert_refused(capsys, "models/cut/model.safetensors: damaged or cut short", "models", "models/good", "models/cut")


def test_an_interrupt_ends_quietly(capsys, place, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert run(capsys, "models") == (130, "", "")
