"""Thousands of adapters: the same as one by one, whatever happens on the way."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_published import HashEncoder, reading, save_published, snapshot, tiny_config

from t2l_jax import bulk
from t2l_jax import model as model_module
from t2l_jax.bulk import Request, generate_to_folder, read_requests, stream_adapters
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.io import packed
from t2l_jax.io.packed import PackedAdapters
from t2l_jax.io.peft import PeftFormat, load_peft
from t2l_jax.model import load
from t2l_jax.sharding import replicated

REQUESTS = [Request(f"task{index:02d}", f"Say word {index}") for index in range(13)]


@pytest.fixture(autouse=True)
def _encoder(monkeypatch):
    monkeypatch.setattr(model_module, "load_encoder", lambda source, **_: HashEncoder())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save_published(tmp_path_factory.mktemp("published") / "model", tiny_config()))


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def assert_made_by(model, folder, requests):
    """Every adapter is there once, whole, what `model.generate` makes of its description, and in the manifest."""
    expected = model.generate([request.description for request in requests])
    for index, request in enumerate(requests):
        found = load_peft(folder / request.name)
        for module, sides in expected.weights.items():
            np.testing.assert_allclose(found.weights[module]["a"], sides["a"][index], rtol=1e-4, atol=1e-5)
            delta = expected.spec.scale * sides["b"][index]
            np.testing.assert_allclose(found.weights[module]["b"], delta, rtol=1e-4, atol=1e-4)
        assert (folder / request.name / "description.txt").read_text() == request.description
    records = manifest(folder)
    assert [(r["name"], r["description"]) for r in records] == [(r.name, r.description) for r in requests]
    for record in records:
        data = (folder / record["name"] / "adapter_model.safetensors").read_bytes()
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["manifest.jsonl", "store.json", *(r.name for r in requests)]


def test_requests_are_lines_with_name_and_description(tmp_path):
    path = write_lines(
        tmp_path / "t.jsonl", {"name": "a", "description": "Say a."}, {"name": "ä b", "description": "B"}
    )
    path.write_text(path.read_text() + "\n")
    assert read_requests(path) == [Request("a", "Say a."), Request("ä b", "B")]


GOOD = '{"name": "a", "description": "Say a."}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{name: a}", "not JSON"),
        ('{"name": "b", "description": "Say', "not JSON"),
        ("[1]", "expected a JSON object"),
        ('"a"', "expected a JSON object"),
        ('{"name": "b"}', 'needs a text "description"'),
        ('{"description": "Say b."}', 'needs a text "name"'),
        ('{"name": 3, "description": "Say b."}', 'needs a text "name"'),
        ('{"name": "b", "description": null}', 'needs a text "description"'),
        ('{"name": "a", "description": "Again."}', "the name 'a' was used on line 1"),
        ('{"name": "A", "description": "Again."}', "the name 'A' was used on line 1"),
        ('{"name": "../x", "description": "Say b."}', "'../x' holds a path separator"),
        ('{"name": "/etc/x", "description": "Say b."}', "path separator"),
        ('{"name": "..", "description": "Say b."}', "starts with a dot"),
        ('{"name": "", "description": "Say b."}', "is empty"),
        ('{"name": "b", "description": " "}', "the description is empty"),
        (json.dumps({"name": "b", "description": "x" * 1_000_000}), "1,000,000 characters"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(UserError, match=message) as error:
        read_requests(path)
    assert str(error.value).startswith(f"{path}, line 3:")


def test_files_that_are_wrong_are_named(tmp_path):
    for name, data, message in (("empty", b"\n", "has no lines"), ("latin", b'{"name": "\xe4"}', "not UTF-8")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            read_requests(tmp_path / name)
    with pytest.raises(UserError, match="missing cannot be read"):
        read_requests(tmp_path / "missing")


def test_many_are_what_one_by_one_gives(model, tmp_path):
    assert jax.device_count() == 8
    assert generate_to_folder(model, REQUESTS, tmp_path / "out", batch=5) == 13
    assert_made_by(model, tmp_path / "out", REQUESTS)


def assert_packed_by(model, folder, requests, rtol=1e-4):
    """The same of packed adapters."""
    expected, found = model.generate([request.description for request in requests]), PackedAdapters(folder)
    assert sorted(found) == [request.name for request in requests]
    for index, request in enumerate(requests):
        assert found.descriptions[request.name] == request.description
        for module, sides in expected.weights.items():
            for side, array in sides.items():
                np.testing.assert_allclose(found[request.name].weights[module][side], array[index], rtol, 1e-5)
    assert [record["name"] for record in manifest(folder)] == sorted(found)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("bfloat16", 2**-8)])
def test_many_packed_are_what_one_by_one_gives(model, tmp_path, monkeypatch, dtype, rtol):
    monkeypatch.setattr(packed, "SHARD_ADAPTERS", 4)
    assert generate_to_folder(model, REQUESTS, tmp_path, batch=5, packed=True, dtype=dtype) == 13
    assert_packed_by(model, tmp_path, REQUESTS, rtol)
    assert generate_to_folder(model, REQUESTS, tmp_path, batch=5, packed=True, dtype=dtype) == 0


def test_an_error_while_texts_are_embedded_ends_it(model, tmp_path, monkeypatch):
    def fail(texts):
        raise UserError("no encoder")

    monkeypatch.setattr(model.encoder, "embed", fail)
    with pytest.raises(UserError, match="no encoder"):
        generate_to_folder(model, REQUESTS, tmp_path, batch=4, packed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_a_second_run_makes_what_is_missing(model, tmp_path):
    generate_to_folder(model, REQUESTS[:9], tmp_path, batch=8)
    (tmp_path / "task03" / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "task05" / "adapter_config.json").unlink()
    (tmp_path / "manifest.jsonl").unlink()
    kept = (tmp_path / "task04" / "adapter_model.safetensors").stat().st_mtime_ns
    assert generate_to_folder(model, REQUESTS, tmp_path, batch=8) == 2 + 4
    assert (tmp_path / "task04" / "adapter_model.safetensors").stat().st_mtime_ns == kept
    assert_made_by(model, tmp_path, REQUESTS)
    assert generate_to_folder(model, REQUESTS, tmp_path) == 0


def test_another_model_does_not_go_on_with_it(model, tmp_path):
    generate_to_folder(model, REQUESTS[:2], tmp_path / "out", batch=8)
    before = snapshot(tmp_path / "out")
    other = load(save_published(tmp_path / "other", tiny_config(), seed=1))
    with pytest.raises(UserError, match="another fingerprint"):
        generate_to_folder(other, REQUESTS, tmp_path / "out", batch=8)
    assert snapshot(tmp_path / "out") == before


def test_a_batch_holds_something(model, tmp_path):
    with pytest.raises(UserError, match="at least one adapter, got 0"):
        generate_to_folder(model, REQUESTS, tmp_path / "out", batch=0)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_it_and_it_goes_on_later(model, tmp_path, monkeypatch):
    write, calls = PeftFormat.write, []

    def fills_up(self, folder, blocks, description):
        calls.append(folder)
        if len(calls) > 6:
            (folder / "adapter_model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, folder, blocks, description)

    monkeypatch.setattr(PeftFormat, "write", fills_up)
    with pytest.raises(UserError, match=r"no space left on the disk of .*task"):
        generate_to_folder(model, REQUESTS, tmp_path, batch=4)
    monkeypatch.setattr(PeftFormat, "write", write)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 7
    assert left[0] == "store.json"
    assert {load_peft(tmp_path / name).spec.rank for name in left[1:]} == {2}
    assert generate_to_folder(model, REQUESTS, tmp_path, batch=4) == 7
    assert_made_by(model, tmp_path, REQUESTS)


def test_names_of_the_stores_own_files_leave_no_folder(model, tmp_path):
    for name in ("store.json", "Manifest.jsonl"):
        with pytest.raises(UserError, match=f"line 1: an adapter cannot be named {name}"):
            read_requests(write_lines(tmp_path / "t.jsonl", {"name": name, "description": "x"}))
        with pytest.raises(UserError, match=f"an adapter cannot be named {name}"):
            generate_to_folder(model, [Request("a", "x"), Request(name, "x")], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_batch_is_no_larger_than_what_is_asked_for(model, tmp_path, monkeypatch):
    sizes = []

    def stream(model, conditions, batch, **options):
        sizes.append(batch)
        return stream_adapters(model, conditions, batch, **options)

    monkeypatch.setattr(bulk, "stream_adapters", stream)
    assert generate_to_folder(model, REQUESTS[:2], tmp_path, batch=10**8) == 2
    assert generate_to_folder(model, REQUESTS[:2], tmp_path, batch=10**8) == 0
    assert sizes == [2, 1]


def test_a_process_computes_on_its_own_devices(model, monkeypatch):
    own = jax.devices()[6:]
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    meshes = []
    monkeypatch.setattr(bulk, "replicated", lambda mesh: meshes.append(mesh) or replicated(mesh))
    (weights,) = stream_adapters(model, iter([Condition(z=model.encoder.embed(["Say a."]))]), batch=1)
    assert list(meshes[0].devices.flat) == own
    assert len(weights["q_proj"]["a"]) == 2


CHILD = """
import sys, time
from pathlib import Path
from tiny_published import HashEncoder
from t2l_jax import bulk
from t2l_jax import model as model_module
from t2l_jax.bulk import generate_to_folder, read_requests
from t2l_jax.io import packed

class SlowEncoder(HashEncoder):
    def embed(self, texts, cache=None):
        time.sleep(0.1)
        return super().embed(texts, cache)

packed.SHARD_ADAPTERS = 12
model_module.load_encoder = lambda source, **_: SlowEncoder()
generate_to_folder(model_module.load(sys.argv[1]), read_requests(Path(sys.argv[2])), Path(sys.argv[3]), batch=8,
                   packed=sys.argv[4] == "packed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folders", "packed"])
def test_killed_again_and_again_it_ends_with_every_adapter_once_and_whole(model, tmp_path, form):
    published = save_published(tmp_path / "model", tiny_config())
    requests = [Request(f"t{index:03d}", f"Say {index}") for index in range(240)]
    lines = write_lines(tmp_path / "t.jsonl", *({"name": r.name, "description": r.description} for r in requests))
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(published), str(lines), str(out), form]
    root = Path(model_module.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(Path(__file__).parent)])}
    for goal in (10, 110) if form == "folders" else (1, 9):
        child = subprocess.Popen(command, env=environment)
        while sum(1 for _ in out.glob("t*" if form == "folders" else "adapters-*")) < goal and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (out / "manifest.jsonl").exists()
    generate_to_folder(load(published), requests, out, batch=8, packed=form == "packed")
    (assert_packed_by if form == "packed" else assert_made_by)(model, out, requests)


def test_a_model_that_reads_instances_is_refused(tmp_path):
    model = load(save_published(tmp_path / "model", reading("both")))
    with pytest.raises(UserError, match="reads descriptions and instances, so it writes an adapter for each example"):
        generate_to_folder(model, REQUESTS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
