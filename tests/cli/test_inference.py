"""`t2l generate | chat | embed`: adapters, answers and embeddings are the library's, or one line says what is wrong."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import MODEL, ROOT, assert_refused, run
from tiny_published import NET, HashEncoder, save_published, tiny_config

import t2l_jax
from t2l_jax.decoder.generation import Sampling
from t2l_jax.hypernet import TaskEncoderConfig
from t2l_jax.io.peft import load_peft

LINE = '{"name": "a", "description": "Say a."}\n'


def test_generate_one(capsys, place):
    status, out, err = run(capsys, "generate", "Say a", "--model", "models/good", "--out", "new/a")
    assert (status, err) == (0, "")
    assert out == "adapter for org/tiny written to new/a\n"
    expected = t2l_jax.load("models/good").generate(["Say a"])[0]
    found = load_peft("new/a")
    np.testing.assert_allclose(found.weights["q_proj"]["a"], expected.weights["q_proj"]["a"], atol=1e-6)
    assert (place / "new/a/description.txt").read_text() == "Say a"
    assert json.loads((place / "new/a/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_the_base_models_name_is_chosen(capsys, place):
    (place / "t.jsonl").write_text(LINE)
    options = ("--model", "models/good", "--base-name", "served/here")
    assert run(capsys, "generate", "Say a", *options, "--out", "one")[:2] == (
        0,
        "adapter for served/here written to one\n",
    )
    assert run(capsys, "generate", "--from", "t.jsonl", *options, "--out", "many")[0] == 0
    for folder in ("one", "many/a"):
        config = json.loads((place / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "served/here"


@pytest.mark.parametrize(("model", "texts"), [("both", ["Say a"]), ("instance", [])])
def test_generate_one_for_an_instance(capsys, place, model, texts):
    arguments = (*texts, "--instance", "red blue", "--model", f"models/{model}", "--out", "one")
    assert run(capsys, "generate", *arguments) == (0, "adapter for org/tiny written to one\n", "")
    expected = t2l_jax.load(f"models/{model}").generate(texts or None, ["red blue"])[0]
    found = load_peft("one")
    np.testing.assert_allclose(found.weights["q_proj"]["a"], expected.weights["q_proj"]["a"], atol=1e-6)
    assert (place / "one/description.txt").read_text() == "\n\n".join([*texts, "red blue"])


def test_generate_many(capsys, place):
    (place / "t.jsonl").write_text(LINE + LINE.replace('"a"', '"b"'))
    arguments = ("generate", "--from", "t.jsonl", "--model", "models/good", "--out", "many", "--batch", "8")
    assert run(capsys, *arguments) == (0, "2 adapters written, 2 in many\n", "")
    assert run(capsys, *arguments) == (0, "0 adapters written, 2 in many\n", "")
    assert sorted(path.name for path in Path("many").iterdir()) == ["a", "b", "manifest.jsonl", "store.json"]


def test_generate_packed_and_unpack(capsys, place):
    lines = [json.dumps({"name": name, "description": f"Say {name}."}) for name in "abc"]
    (place / "t.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ("generate", "--from", "t.jsonl", "--model", "models/good", "--out", "many", "--format", "packed")
    assert run(capsys, *arguments) == (0, "3 adapters written, 3 in many\n", "")
    assert run(capsys, "unpack", "many", "c", "a", "--out", "two") == (0, "2 adapters written to two\n", "")
    assert sorted(path.name for path in (place / "two").iterdir()) == ["a", "c"]
    expected = t2l_jax.load("models/good").generate(["Say c."])[0]
    found = load_peft("two/c")
    np.testing.assert_allclose(found.weights["q_proj"]["a"], expected.weights["q_proj"]["a"], atol=1e-6)
    delta = expected.spec.scale * expected.weights["q_proj"]["b"]
    np.testing.assert_allclose(found.weights["q_proj"]["b"], delta, atol=1e-5)
    assert (place / "two/c/description.txt").read_text() == "Say c."
    assert json.loads((place / "two/c/adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"


def test_unpack_refuses(capsys, place):
    (place / "t.jsonl").write_text(LINE)
    run(capsys, "generate", "--from", "t.jsonl", "--model", "models/good", "--out", "many", "--format", "packed")
    assert_refused(capsys, "many has no adapter named 'x'", "unpack", "many", "a", "x", "--out", "new")
    assert_refused(capsys, "store.json cannot be read", "unpack", "models", "a", "--out", "new")
    assert_refused(capsys, "give at least one name", "unpack", "many", "--out", "new")
    assert_refused(capsys, "many exists already", "unpack", "many", "a", "--out", "many")
    (shard,) = (place / "many").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_refused(capsys, "lost with it: a: generate them again", "unpack", "many", "a", "--out", "new")
    assert not (place / "new").exists()
    assert_refused(capsys, "--format and --dtype are for --from", "generate", "Say a", *MODEL, "--format", "packed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either a description or --from"),
        (("Say a.", "--from", "t.jsonl"), "give either a description or --from"),
        (("--instance", "red", "--from", "t.jsonl"), "give either a description or --from"),
        (("Say a.", "--distributed", "vm-0:1234"), "--distributed divides the lines of --from"),
        (("--from", "t.jsonl", "--distributed", "vm-0"), "'vm-0' is not auto, off or HOST:PORT"),
        (("Say a.", "--instance", " ", "--model", "models/both"), "the instance is empty"),
        (("Say a.", "--instance", "red", *MODEL), "reads descriptions: leave the instances out"),
        (("Say a.", "--model", "models/both"), "reads descriptions and instances: give instances, too"),
        (("Say a.", "--model", "models/instance"), "reads instances: leave the descriptions out"),
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
        (("Say a.", "--model", "models/cut"), "model.safetensors: damaged or cut short"),
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
        (LINE, ("--model", "models/both"), "so it writes an adapter for each example"),
        (LINE, ("--batch", "0"), "at least one adapter, got 0"),
        (LINE, ("--out", "full"), "full holds other files than adapters"),
        (LINE, ("--out", "file"), "file cannot be written"),
        (LINE, ("--from", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (LINE, ("--from", "tasks"), "tasks cannot be read"),
        (LINE, ("--model", "models/cut"), "model.safetensors: damaged or cut short"),
    ],
)
def test_generate_from_a_file_refuses(capsys, place, lines, options, message):
    Path("t.jsonl").write_text(lines)
    assert_refused(capsys, message, "generate", "--from", "t.jsonl", *MODEL, "--out", "new", *options)


@pytest.mark.slow
def test_generate_in_a_process_of_its_own_without_the_base_model(tmp_path, minilm):
    """The real text encoder; the base model is not even there. What stands there already is left: one line says so."""
    net = replace(NET, task=TaskEncoderConfig(dim=384))
    save_published(tmp_path / "model", tiny_config("no/such/base", encoder=str(minilm), hypernet=net))
    code = "from t2l_jax.cli import main; main(); main()"  # twice in one process: importing takes longer than both
    command = [sys.executable, "-c", code, "generate", "Say the last word", "--model", "model", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "adapter for org/tiny written to out\n"), done.stderr
    assert load_peft(tmp_path / "out").spec.rank == 2
    assert done.stderr.startswith("t2l: error: out exists already")
    assert done.stderr.count("\n") == 1


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


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the second is Python's in the locale C
def test_chat_refuses_bytes_that_are_no_text(capsys, place, monkeypatch, errors):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red \xff blue\n"), "utf-8", errors))
    assert_refused(capsys, "not UTF-8" if errors != "strict" else "not utf-8 text", "chat", *MODEL)


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
