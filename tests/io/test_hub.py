"""Folders go to a hub that speaks huggingface.co's HTTP and come back as they were; what fails says how to go on."""

import json
import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import peft
import pytest
import transformers
from hub_server import PAGE, Refused, Repo, connect, running

from t2l_jax.errors import UserError
from t2l_jax.io import hub
from t2l_jax.io.adapter_store import AdapterStore, write_collection_card
from t2l_jax.io.locations import fetch
from t2l_jax.io.peft import PeftFormat, load_peft
from t2l_jax.lora import LoraModule, LoraSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # the hub's client, of its HTTP library
SPEC = LoraSpec((LoraModule("q_proj", 8, 8),), num_layers=1, rank=1)
FILES = PeftFormat(SPEC, "org/tiny")


@pytest.fixture(params=[False, True], ids=["lfs", "in parts"])
def server(request, monkeypatch, tmp_path):
    with running(xet=request.param) as found:
        connect(monkeypatch, found, tmp_path / "home")
        yield found


@pytest.fixture
def lfs(monkeypatch, tmp_path):
    with running() as found:
        connect(monkeypatch, found, tmp_path / "home")
        yield found


def fill(folder: Path, count: int) -> Path:
    """A folder of adapters; in the n-th, A is n."""
    names = [f"task{index:03d}" for index in range(count)]
    values = np.arange(count, dtype=np.float32)[:, None, None, None]
    shapes = SPEC.shapes()["q_proj"]
    weights = {"q_proj": {side: np.broadcast_to(values, (count, *shape)) for side, shape in shapes.items()}}
    with AdapterStore(folder, FILES, "x") as store:
        store.write(names, [f"Do {name}." for name in names], weights)
    write_collection_card(folder, FILES.card)
    return folder


def read_as_vllm_does(repo: str, name: str) -> Path:
    """The folder of an adapter, by the calls of vLLM's lora_hf_hub_resolver."""
    api = huggingface_hub.HfApi()
    adapters = {str(Path(path).parent) for path in api.list_repo_files(repo) if path.endswith("adapter_config.json")}
    assert name in adapters
    return Path(api.snapshot_download(repo, allow_patterns=f"{name}/*")) / name


def test_hundreds_of_adapters_are_one_repository(server, tmp_path):
    count = 300
    folder = fill(tmp_path / "many", count)
    assert hub.push_folder(folder, "org/many") == f"{server.url}/org/many"
    repo = server.repos["org/many"]
    assert len(repo.files) == 4 * count + 3 > 2 * PAGE  # pages of listings are followed
    local = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {path: data for path, (data, _) in repo.files.items()} == {k: path.read_bytes() for k, path in local.items()}
    assert (len(repo.titles) > 1) == server.xet
    for index in (0, 299):
        found = read_as_vllm_does("org/many", f"task{index:03d}")
        assert sorted(path.name for path in found.iterdir()) == [
            "README.md", "adapter_config.json", "adapter_model.safetensors", "description.txt",
        ]  # fmt: skip
        assert np.unique(load_peft(found).weights["q_proj"]["a"]).tolist() == [index]
        assert json.loads((found / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    data = huggingface_hub.ModelCard.load("org/many").data.to_dict()
    assert data["tags"] == ["base_model:adapter:org/tiny", "lora", "text-to-lora", "transformers"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_reads_an_adapter_of_a_repository(lfs, tmp_path):
    hub.push_folder(fill(tmp_path / "many", 3), "org/many")
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(config), "org/many", subfolder="task002")
    delta = model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
    assert delta.unique().tolist() == [2 * 2 * SPEC.scale]


def test_a_second_push_uploads_what_is_new(server, tmp_path):
    hub.push_folder(fill(tmp_path / "a", 2), "org/a")
    before = len(server.repos["org/a"].commits)
    hub.push_folder(tmp_path / "a", "org/a")
    assert len(server.repos["org/a"].commits) == before
    (tmp_path / "a" / "task000").rename(tmp_path / "a" / "my.partial.task")
    fill(tmp_path / "a", 3)
    (tmp_path / "a" / ".x.partial").mkdir()
    (tmp_path / "a" / ".x.partial" / "half").write_text("")
    hub.push_folder(tmp_path / "a", "org/a")
    assert len(server.repos["org/a"].commits) == before + 1
    assert "task002/adapter_model.safetensors" in server.repos["org/a"].files
    assert {path for path in server.repos["org/a"].files if "partial" in path} == {
        f"my.partial.task/{name}"
        for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "description.txt")
    }


def test_an_upload_that_fails_halfway_goes_on_where_it_was(server, tmp_path, monkeypatch):
    folder, commits = fill(tmp_path / "my many", 150), []

    def fail():
        commits.append(1)
        if len(commits) > server.xet:  # in parts: the first one is committed
            raise Refused(403, "storage limit reached")

    server.before_commit = fail
    with pytest.raises(
        UserError, match=r"not pushed to org/x: the token has no right .* `hf upload org/x '.*my many' \.`"
    ):
        hub.push_folder(folder, "org/x")
    assert len(list(folder.iterdir())) == 153
    there = set(server.repos["org/x"].files)
    assert bool(there) == server.xet
    server.before_commit = lambda: None
    server.seen.clear()
    hub.push_folder(folder, "org/x")
    assert len(server.repos["org/x"].files) == 603
    assert not any(method == "PUT" for method, *_ in server.seen)  # the objects were there


def test_private_is_said_to_the_hub(lfs, tmp_path):
    hub.push_folder(fill(tmp_path / "a", 1), "org/secret", private=True)
    hub.push_folder(tmp_path / "a", "org/open")
    assert [lfs.repos[name].private for name in ("org/secret", "org/open")] == [True, False]
    with pytest.raises(UserError, match=r"`hf upload bob/a .* \. --private` tries again"):
        hub.push_folder(tmp_path / "a", "bob/a", private=True)


def test_nothing_private_goes_to_a_public_repository(lfs, tmp_path):
    folder = fill(tmp_path / "a", 1)
    lfs.repos["org/x"] = Repo()
    with pytest.raises(UserError, match=r"^org/x exists and is public: make it private on the hub, or .* is complete$"):
        hub.push_folder(folder, "org/x", private=True)
    assert not lfs.repos["org/x"].files
    lfs.repos["org/x"].private = True
    hub.push_folder(folder, "org/x", private=True)
    assert lfs.repos["org/x"].files


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("adapters", "--push adapters: write org/name"),
        ("org/a b", "Repo id must use alphanumeric chars"),
        ("org/a--b", "Cannot have -- or .."),
        ("a/b/c", "Repo id must be in the form"),
        ("../x", "Repo id must"),
        ("", "Repo id must"),
        ("stranger/x", "the token is that of ada, who is not in stranger: give ada/"),
    ],
)
def test_a_name_is_checked_before_anything_is_written(lfs, repo, message):
    with pytest.raises(UserError, match=message):
        hub.check_push(repo)
    assert not any(method != "GET" for method, *_ in lfs.seen)


def test_a_token_that_may_write_passes_and_nothing_is_written(lfs):
    hub.check_push("org/x")
    hub.check_push("ada/x")
    hub.check_push("Org/x")
    assert [path for _, path, _ in lfs.seen] == ["/api/whoami-v2"] * 3
    assert not lfs.repos


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"--push org/x: no token: run `hf auth login`, or set HF_TOKEN"),
        ("hf_nobody_knows", r"--push org/x: the hub does not accept the token \(401\)"),
        ("hf_reads", "--push org/x: the token may only read"),
        ("hf_other", "the token is that of bob, who is not in org"),
    ],
)
def test_a_token_that_cannot_write_is_refused(lfs, monkeypatch, tmp_path, token, message):
    connect(monkeypatch, lfs, tmp_path / "home", token)
    with pytest.raises(UserError, match=message) as error:
        hub.check_push("org/x")
    assert token is None or token not in str(error.value)
    if token:  # and by the hub itself, if the check was right and things have changed since
        with pytest.raises(UserError, match=r"not pushed to org/x: .*; .* is complete: `hf upload org/x") as error:
            hub.push_folder(fill(tmp_path / "a", 1), "org/x")
        assert token not in str(error.value)
    assert not lfs.repos


@pytest.mark.parametrize("token", ["hf_wé", "hf_w\x01", "hf_w rites"])
def test_a_token_that_can_be_none_is_said_and_not_shown(lfs, monkeypatch, tmp_path, token):
    connect(monkeypatch, lfs, tmp_path / "home", token)
    reason = r"the token has a character that no token has: .* make one at https://huggingface.co/settings/tokens$"
    with pytest.raises(UserError, match=rf"^--push org/x: {reason}") as error:
        hub.check_push("org/x")
    assert "hf_w" not in str(error.value)
    assert not lfs.seen


@pytest.mark.parametrize("token", ["hf_wé", "hf_w\nrites"])
def test_nor_is_it_shown_where_a_model_is_fetched(lfs, token):
    with pytest.raises(UserError, match=r"^hf:org/x: the token has a character that no token has: ") as error:
        fetch("org/x", token=token)
    assert "hf_w" not in str(error.value)


def test_offline_nothing_is_asked(lfs, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--push org/x: HF_HUB_OFFLINE is set: unset it"):
        hub.check_push("org/x")
    assert not lfs.seen


def test_a_hub_that_is_not_there(lfs, monkeypatch, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(UserError, match=r"--push org/x: http://127.* cannot be reached .*: check the connection"):
            hub.check_push("org/x")
        with pytest.raises(UserError, match=r"not pushed to org/x: http://127.* cannot be reached .*`hf upload"):
            hub.push_folder(fill(tmp_path / "a", 1), "org/x")


def test_a_card_that_the_hub_refuses_is_said(lfs, tmp_path):
    folder = fill(tmp_path / "a", 1)
    (folder / "README.md").write_text("---\nbase_model: /a/path\n---\n")
    with pytest.raises(
        UserError, match=r'Invalid metadata in README.md. - "base_model" is not a valid model id; .*a is'
    ):
        hub.push_folder(folder, "org/x")
