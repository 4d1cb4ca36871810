"""`--push org/name`: one adapter, thousands and a hypernetwork, to a hub that speaks huggingface.co's HTTP."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from command_line import MODEL, ROOT, assert_refused, run
from hub_server import connect, running

import t2l_jax
from t2l_jax.io import descriptions
from t2l_jax.io.peft import load_peft

# The hub's client calls its HTTP library in a way that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
LINES = "".join(json.dumps({"name": name, "description": f"Say {name}."}) + "\n" for name in "abc")
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "description.txt"]


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with running() as found:
        connect(monkeypatch, found, tmp_path_factory.mktemp("home"))
        yield found


def download(repo: str, **options) -> Path:
    return Path(huggingface_hub.snapshot_download(repo, **options))


def test_one_adapter_is_a_repository(capsys, place, hub):
    arguments = ("generate", "Say a", *MODEL, "--out", "new", "--push", "org/a")
    out = f"adapter for org/tiny written to new\nnew pushed to {hub.url}/org/a\n"
    assert run(capsys, *arguments) == (0, out, "")
    assert sorted(hub.repos["org/a"].files) == FILES
    wanted = load_peft("new")
    jax.tree.map(np.testing.assert_array_equal, load_peft(download("org/a")).weights, wanted.weights)


def test_many_adapters_are_one_repository_with_a_folder_each(capsys, place, hub):
    Path("t.jsonl").write_text(LINES)
    arguments = ("generate", "--from", "t.jsonl", *MODEL, "--out", "new", "--base-name", "org/other", "--push", "org/b")
    status, out, _ = run(capsys, *arguments, "--private")
    assert (status, out) == (0, f"3 adapters written, 3 in new\nnew pushed to {hub.url}/org/b\n")
    repo = hub.repos["org/b"]
    assert repo.private
    assert sorted(repo.files) == sorted(
        ["README.md", "manifest.jsonl", "store.json", *(f"{name}/{file}" for name in "abc" for file in FILES)]
    )
    card = repo.files["README.md"][0].decode()
    assert "| b | Say b&#46; |" in card
    assert huggingface_hub.ModelCard(card).data.base_model == "org/other"
    found = download("org/b", allow_patterns="b/*") / "b"
    jax.tree.map(np.testing.assert_array_equal, load_peft(found).weights, load_peft("new/b").weights)
    assert run(capsys, *arguments)[1].startswith("0 adapters written, 3 in new\n")  # again: nothing is new
    assert len(repo.titles) == 1


def test_a_hypernetwork_is_published_and_pulled(capsys, place, hub):
    status, out, err = run(capsys, "publish", "models/good", "--out", "new", "--push", "ada/net")
    assert (status, err) == (0, "")
    assert "\ndescriptions of training tasks in it: 0\n" in out
    assert out.endswith(f"new pushed to {hub.url}/ada/net\n")
    found, wanted = t2l_jax.load("hf:ada/net"), t2l_jax.load("models/good")
    assert found.fingerprint == wanted.fingerprint
    generated = ("generate", "Say a", "--model", "hf:ada/net", "--out", "pulled")
    assert run(capsys, *generated)[0] == 0
    adapter = wanted.generate(["Say a"])[0]
    np.testing.assert_allclose(load_peft("pulled").weights["q_proj"]["a"], adapter.weights["q_proj"]["a"], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Say a", "--push", "new"), "--push new: write org/name"),
        (("Say a", "--push", "stranger/new"), "the token is that of ada, who is not in stranger"),
        (("Say a", "--private"), "--private is for --push org/name"),
        (("--from", "t.jsonl", "--push", "org/a", "--format", "packed"), "--push is for --format folders"),
        (("--from", "t.jsonl", "--push", "org/a b"), "Repo id must use alphanumeric"),
    ],
)
def test_what_cannot_be_pushed_is_not_begun(capsys, place, hub, arguments, message):
    Path("t.jsonl").write_text(LINES)
    assert_refused(capsys, message, "generate", *arguments, *MODEL, "--out", "new")
    assert not hub.repos


def test_publish_refuses_before_it_writes(capsys, place, hub, monkeypatch):
    assert_refused(capsys, "--push x: write org/name", "publish", "models/good", "--out", "new", "--push", "x")
    assert_refused(capsys, "--private is for --push", "publish", "models/good", "--out", "new", "--private")
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(capsys, "no token: run `hf auth login`", "publish", "models/good", "--out", "new", "--push", "org/x")


def test_what_could_not_be_pushed_is_there_and_the_line_that_pushes_it(capsys, place, hub):
    def fail():
        raise ConnectionError("the cable is out")

    hub.before_commit = fail
    hub.handle_error = lambda *_: None  # it would print the error
    status, out, err = run(capsys, "generate", "Say a", *MODEL, "--out", "new", "--push", "org/a")
    assert (status, out) == (2, "adapter for org/tiny written to new\n")
    assert err.startswith("t2l: error: not pushed to org/a: ")
    assert err.endswith("new is complete: `hf upload org/a new .` tries again\n")
    assert load_peft("new").spec.rank == 2


def test_published_descriptions_are_counted_and_can_stay_out(capsys, place):
    shutil.copytree("models/good", "new/model")
    descriptions.write(Path("new/model"), descriptions.Descriptions(trained=("Say a.", "Say b.")))
    assert run(capsys, "publish", "new/model", "--out", "new/all")[1].endswith("training tasks in it: 2\n")
    status, out, _ = run(capsys, "publish", "new/model", "--out", "new/none", "--no-descriptions")
    assert (status, out.splitlines()[1]) == (0, "descriptions of training tasks in it: 0")
    assert t2l_jax.load("new/none").descriptions == descriptions.NONE


def test_more_adapters_than_a_repository_takes_are_refused_at_once(capsys, place, hub, monkeypatch):
    Path("t.jsonl").write_text(LINES)
    monkeypatch.setattr("t2l_jax.io.hub.MOST_ENTRIES", 5)  # three adapters, and three files beside them
    arguments = ("generate", "--from", "t.jsonl", *MODEL, "--out", "new", "--push", "org/a")
    assert_refused(capsys, "--push org/a: 6 files and folders beside each other, of which the hub takes 5", *arguments)
    monkeypatch.setattr("t2l_jax.io.hub.MOST_ENTRIES", 6)
    assert run(capsys, *arguments)[0] == 0
    assert len({path.split("/")[0] for path in hub.repos["org/a"].files}) == 6


@pytest.mark.slow
def test_killed_while_it_uploads_the_command_again_or_the_hubs_own_goes_on(place, tmp_path_factory):
    """The command line in processes of its own, which find the hub by HF_ENDPOINT."""
    Path("t.jsonl").write_text(LINES)
    home = tmp_path_factory.mktemp("home")
    with running() as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            **hub.environment,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_writes",
        }
        code = (
            "from tiny_published import HashEncoder\nfrom t2l_jax import model\n"
            "model.load_encoder = lambda *_, **__: HashEncoder()\nfrom t2l_jax.cli import main\nmain()"
        )
        command = [sys.executable, "-c", code, "generate", "--from", "t.jsonl", *MODEL, "--out", "new"]
        child = subprocess.Popen([*command, "--push", "org/a"], env=environment)
        hub.before_commit = lambda: os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        hub.before_commit = lambda: None
        hub.repos["org/a"].files.clear()  # whether the commit arrived is the network's secret
        done = subprocess.run(
            [*command, "--push", "org/a"], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"0 adapters written, 3 in new\nnew pushed to {hub.url}/org/a\n"
        assert "hf_writes" not in done.stdout + done.stderr
        hf = shutil.which("hf", path=Path(sys.executable).parent)
        assert hf is not None
        subprocess.run([hf, "upload", "org/b", "new", "."], env=environment, capture_output=True, check=True)
        assert hub.repos["org/b"].files == hub.repos["org/a"].files
        assert len(hub.repos["org/a"].files) == 15
