"""The rows of a data set: from the hub's data sets or from below the registry's folder, and from nowhere else."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.errors import HfHubHTTPError
from registry import rows_of, write

from t2l_jax.data import rows
from t2l_jax.data.hub import load_hub_task, load_registry
from t2l_jax.data.rows import with_retries
from t2l_jax.errors import UserError

SECRET = '{"question": "secret", "answer": "secret"}\n'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Whatever asks for the address of another machine fails the test."""

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.parametrize(
    "source",
    [
        {"path": "data"},
        {"path": "data", "data_files": "train.jsonl"},
        {"path": "data", "data_files": {"train": ["*.jsonl"]}},
        {"path": "json", "data_files": "data/train.jsonl"},
        {"path": "json", "data_files": ["train.jsonl"], "data_dir": "data"},
    ],
)
def test_files_below_the_folder_of_the_registry_are_read(tmp_path, source):
    task = load_hub_task(write(tmp_path / "a", rows_of("x", "y"), ds_kwargs={**source, "split": "train"}))
    assert [example.input for example in task.train] == ["x", "y"]


def test_the_configurations_of_a_card_are_followed(tmp_path):
    path = write(tmp_path / "a", rows_of("x"), ds_kwargs={"path": "data", "name": "other", "split": "train"})
    path.with_name("data").joinpath("more.jsonl").write_text(json.dumps(rows_of("z")[0]) + "\n")
    card = "---\nconfigs:\n- config_name: other\n  data_files: more.jsonl\n---\n# A data set\n"
    path.with_name("data").joinpath("README.md").write_text(card)
    assert [example.input for example in load_hub_task(path).train] == ["z"]


OUTSIDE = "must be a path inside the data set"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "text", "data_files": "/etc/hostname"}, OUTSIDE),
        ({"path": "text", "data_files": "~/.bashrc"}, OUTSIDE),
        ({"path": "text", "data_files": "file:///etc/hostname"}, OUTSIDE),
        ({"path": "text", "data_files": {"train": ["data/../../secret.jsonl"]}}, OUTSIDE),
        ({"path": "json", "data_files": ["https://example.org/x.json"]}, OUTSIDE),
        ({"path": "json", "data_files": "hf://datasets/org/name/x.json"}, OUTSIDE),
        ({"path": "json", "data_files": "zip://x.json::x.zip"}, OUTSIDE),
        ({"path": "json", "data_files": "secret.jsonl", "data_dir": ".."}, OUTSIDE),
        ({"path": "data", "data_files": "../secret.jsonl"}, OUTSIDE),
        ({"path": "data", "data_dir": "/etc"}, OUTSIDE),
        ({"path": "org/name", "data_files": "/etc/hostname"}, OUTSIDE),
        ({"path": "json", "data_files": "link.jsonl"}, "reads .*link.jsonl, which lies outside"),
        ({"path": "json", "data_files": "*.jsonl"}, "reads .*link.jsonl, which lies outside"),
        ({"path": "links"}, "'links' lies outside"),
        ({"path": "../other"}, "'../other' lies outside"),
        ({"path": "../nowhere"}, "neither a folder below .* nor a data set of the hub"),
        ({"path": "/etc"}, "'/etc' lies outside"),
        ({"path": "https://example.org/x"}, "neither a folder below"),
        ({"path": "hf://datasets/org/name"}, "neither a folder below"),
        ({"path": "buckets/org/name"}, "neither a folder below"),
        ({"path": "x" * 300}, "field ds_kwargs.path"),
        ({"path": "json"}, "'json' is a format: name its files in data_files"),
        ({"path": "pandas", "data_files": "a/data/train.pkl"}, "has the format pandas: only arrow, csv"),
        ({"path": "webdataset", "data_files": "a/data/train.pkl"}, "has the format webdataset"),
        ({"path": "data", "data_files": "train.pkl"}, "cannot be loaded"),
        ({"path": "data", "data_files": {"train": 3}}, "field ds_kwargs.data_files"),
        ({"path": "here"}, "'here' is here in the current directory, too"),
    ],
)
@pytest.mark.filterwarnings("ignore:The Pandas builder is deprecated")
def test_nothing_else_is_read(tmp_path, monkeypatch, source, message):
    """No file outside, no address, and nothing that is unpickled."""
    path = write(tmp_path / "a", rows_of("x"), ds_kwargs={**source, "split": "train"})
    (tmp_path / "secret.jsonl").write_text(SECRET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text(SECRET)
    path.with_name("link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    path.with_name("links").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    (path.parent / "data" / "train.pkl").write_bytes(pickle.dumps(Unpickled(str(tmp_path / "unpickled"))))
    with pytest.raises(UserError, match=rf"a/metadata\.yaml: .*({message})"):
        load_hub_task(path)
    assert not (tmp_path / "unpickled").exists()


class Unpickled:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "files", ["../../secret.jsonl", "[{split: train, path: [/etc/hostname]}]", "'https://x.org/y'"]
)
def test_a_card_that_names_files_elsewhere_is_refused(tmp_path, name, files):
    path = write(tmp_path / "a", rows_of("x"))
    header = f"configs:\n- config_name: default\n  data_files: {files}\n"
    path.with_name("data").joinpath(name).write_text(f"---\n{header}---\n" if name == "README.md" else header)
    with pytest.raises(UserError, match=rf"{name}: configs: .* {OUTSIDE}"):
        load_hub_task(path)


def test_offline_says_that_it_is_not_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = write(tmp_path / "far", rows_of("x"), ds_kwargs={"path": "org/nothing-of-that-name", "split": "train"})
    with pytest.raises(UserError, match=r"org/nothing-of-that-name cannot be loaded .*not in the cache: run once with"):
        load_hub_task(path)


def test_a_network_that_stays_away_is_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def fail(**options):
        asked.append(options["path"])
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    monkeypatch.setattr(rows, "WAITS", (0.0,))
    path = write(tmp_path / "far", rows_of("x"), ds_kwargs={"path": "org/name", "split": "train"})
    with pytest.raises(UserError, match=r"org/name cannot be loaded \(no route\): the hub cannot be reached"):
        load_hub_task(path)
    write(tmp_path / "farther", rows_of("x"), ds_kwargs={"path": "org/other", "split": "train"})
    asked.clear()
    with pytest.raises(UserError, match=r"org/name cannot be loaded"):  # and the next one is not even tried
        load_registry(tmp_path)
    assert asked == ["org/name", "org/name"]


def refused(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("refused", response=response)


@pytest.mark.parametrize("error", [ConnectionError(), rows.HTTP_ERROR("slow"), refused(503), refused(429)])
def test_what_may_pass_is_tried_again_with_longer_and_longer_waits(error):
    tries, waits = [], []

    def load():
        tries.append(1)
        if len(tries) < 3:
            raise error
        return "rows"

    assert with_retries(load, waits.append) == "rows"
    assert waits == [1.0, 4.0]


@pytest.mark.parametrize("error", [refused(404), ValueError("no")])
def test_what_does_not_pass_is_not_tried_again(error):
    waits = []

    def load():
        raise error

    with pytest.raises(type(error)):
        with_retries(load, waits.append)
    assert waits == []


def test_it_is_tried_so_many_times_only():
    waits = []

    def load():
        raise ConnectionError

    with pytest.raises(ConnectionError):
        with_retries(load, waits.append)
    assert waits == list(rows.WAITS)
