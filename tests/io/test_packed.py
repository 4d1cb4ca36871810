"""Packed adapters: what was written, by name, through kills and damage."""

import errno
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from t2l_jax.errors import UserError
from t2l_jax.io import packed
from t2l_jax.io.adapter_store import AdapterStore
from t2l_jax.io.packed import PackedAdapters, PackedStore
from t2l_jax.io.peft import PeftFormat
from t2l_jax.lora import LoraModule, LoraSpec

SPEC = LoraSpec((LoraModule("q_proj", 16, 16), LoraModule("v_proj", 16, 8)), num_layers=2, rank=2)
FILES = PeftFormat(SPEC, "org/tiny")
NAMES = [f"täsk{index}" for index in range(7)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(packed, "SHARD_ADAPTERS", 3)


def weights_of(rows, dtype="float32"):
    every = np.random.default_rng(0)
    return {
        name: {
            side: every.standard_normal((len(NAMES), *shape), np.float32)[list(rows)].astype(dtype)
            for side, shape in shapes.items()
        }
        for name, shapes in SPEC.shapes().items()
    }


def fill(folder, names=NAMES, files=FILES, batch=2, stop=None, kind=PackedStore, make=weights_of):
    """Write what is pending; return its positions. `stop` batches are written before an error."""
    texts = [f"Do {name}.\n" for name in names]
    with kind(folder, files, "hypernet-1") as store:
        pending = store.pending(names, texts)
        store.plan([names[row] for row in pending], [texts[row] for row in pending])
        for number, start in enumerate(range(0, len(pending), batch)):
            if number == stop:
                raise RuntimeError("stopped")
            rows = pending[start : start + batch]
            weights = make(rows, jnp.dtype(files.dtype))
            store.write([names[row] for row in rows], [texts[row] for row in rows], weights)
    return pending


def assert_whole(folder, names=NAMES, decimals=0.0):
    found, weights = PackedAdapters(folder), weights_of(range(len(NAMES)))
    assert sorted(found) == sorted(names)
    assert found.lost == ()
    for index, name in enumerate(NAMES):
        if name in names:
            assert found.descriptions[name] == f"Do {name}.\n"
            assert found[name].spec == SPEC
            for module, sides in weights.items():
                for side, array in sides.items():
                    leaf = found[name].weights[module][side]
                    assert leaf.dtype == np.float32
                    np.testing.assert_allclose(leaf, array[index], rtol=decimals, atol=0)
    records = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == sorted(names)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_what_is_written_is_there_by_name(tmp_path, batch):
    assert fill(tmp_path / "s", batch=batch) == list(range(7))
    assert_whole(tmp_path / "s")
    shards = sorted((tmp_path / "s").glob("*.safetensors"))
    assert [path.name for path in shards] == [f"adapters-{number:05d}-000.safetensors" for number in range(3)]


def test_a_shard_is_a_safetensors_file_of_stacked_weights(tmp_path):
    fill(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    for index, record in enumerate(records):
        with safe_open(tmp_path / record["shard"], "np") as file:
            assert json.loads(file.metadata()["adapters"])[record["row"]] == [NAMES[index], f"Do {NAMES[index]}.\n"]
            stored = file.get_tensor("v_proj.b")[record["row"]]
        np.testing.assert_array_equal(stored, weights_of([index])["v_proj"]["b"][0])


def test_halves_are_read_in_float32(tmp_path):
    fill(tmp_path, files=PeftFormat(SPEC, "org/tiny", "bfloat16"))
    assert_whole(tmp_path, decimals=2**-8)
    assert (tmp_path / "adapters-00000-000.safetensors").stat().st_size < 3 * SPEC.size * 2 + 2000


def test_a_second_run_makes_what_is_missing(tmp_path):
    fill(tmp_path, NAMES[:2])
    kept = (tmp_path / "adapters-00000-000.safetensors").stat().st_mtime_ns
    with pytest.raises(RuntimeError):
        fill(tmp_path, stop=2)  # four of the five that are left, of which three are a shard
    assert not (tmp_path / "manifest.jsonl").exists()
    assert fill(tmp_path) == [5, 6]
    assert (tmp_path / "adapters-00000-000.safetensors").stat().st_mtime_ns == kept
    assert_whole(tmp_path)
    assert fill(tmp_path) == []


def test_a_killed_run_leaves_whole_shards_only(tmp_path):
    """A killed process runs no cleanup: what it leaves is a temporary."""
    store = PackedStore(tmp_path, FILES, "hypernet-1").__enter__()
    store.pending(NAMES, NAMES)
    store.plan(NAMES, [f"Do {name}.\n" for name in NAMES])
    store.write(NAMES[:5], [f"Do {name}.\n" for name in NAMES[:5]], weights_of(range(5)))
    store._pool.shutdown(wait=True)
    store._lock.close()
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    assert sorted(PackedAdapters(tmp_path)) == NAMES[:3]
    assert fill(tmp_path) == [3, 4, 5, 6]
    assert_whole(tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_of_a_damaged_shard_the_lost_are_named_and_the_rest_is_read(tmp_path, cut):
    fill(tmp_path)
    path = tmp_path / "adapters-00001-000.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    found = PackedAdapters(tmp_path)
    assert sorted(found) == [*NAMES[:3], NAMES[6]]
    assert found.lost == (*NAMES[3:6],)
    np.testing.assert_array_equal(found[NAMES[6]].weights["q_proj"]["a"], weights_of([6])["q_proj"]["a"][0])
    with pytest.raises(UserError, match=r"adapters-00001-000.*damaged.*lost with it: täsk3, täsk4, täsk5: generate"):
        found["täsk4"]
    assert fill(tmp_path) == [3, 4, 5]
    assert_whole(tmp_path)


def test_a_lost_shard_is_named(tmp_path):
    fill(tmp_path)
    (tmp_path / "adapters-00002-000.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapters-00002-000.safetensors is missing; lost with it: täsk6"):
        PackedAdapters(tmp_path)["täsk6"]


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path):
    fill(tmp_path / "good")
    path = tmp_path / "good" / "adapters-00000-000.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    found = PackedAdapters(tmp_path / "good")
    with pytest.raises(UserError, match=r"v_proj.b of täsk2 is not finite"):
        found["täsk2"]
    assert len(found["täsk1"].weights) == 2

    def broken(rows, dtype):
        weights = weights_of(rows, dtype)
        weights["q_proj"]["a"][-1, 0, 0, 0] = np.inf
        return weights

    with pytest.raises(UserError, match=r"weights of q_proj.a are not finite"):
        fill(tmp_path / "bad", make=broken)
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["store.json"]


@pytest.mark.parametrize(
    "full",
    [lambda calls: len(calls) > 12, lambda calls: calls[-1] == 0 == calls.count(0) - 3],
    ids=["anywhere", "at the header of the third shard"],
)
def test_a_full_disk_ends_it_and_it_goes_on_later(tmp_path, monkeypatch, full):
    write, calls = packed._Shard._pwrite, []

    def fills_up(self, data, place):
        calls.append(place)
        if full(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data, place)

    monkeypatch.setattr(packed._Shard, "_pwrite", fills_up)
    with pytest.raises(UserError, match=r"no space left on the disk of .*adapters-"):
        fill(tmp_path)
    monkeypatch.setattr(packed._Shard, "_pwrite", write)
    assert not list(tmp_path.glob(".*.partial"))
    fill(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize(("first", "second"), [(AdapterStore, PackedStore), (PackedStore, AdapterStore)])
def test_folders_and_packed_do_not_mix(tmp_path, first, second):
    fill(tmp_path, kind=first)
    with pytest.raises(UserError, match="made with another format"):
        fill(tmp_path, kind=second)


def test_another_description_type_or_fingerprint_is_refused(tmp_path):
    fill(tmp_path)
    with (
        pytest.raises(UserError, match="täsk0 was made from another description"),
        PackedStore(tmp_path, FILES, "hypernet-1") as store,
    ):
        store.pending(["täsk0"], ["Other."])
    with pytest.raises(UserError, match="another dtype"):
        fill(tmp_path, files=PeftFormat(SPEC, "org/tiny", "bfloat16"))
    with pytest.raises(UserError, match="another fingerprint"), PackedStore(tmp_path, FILES, "other"):
        pass


def test_what_is_no_packed_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"store.json cannot be read"):
        PackedAdapters(tmp_path)
    fill(tmp_path, kind=AdapterStore)
    with pytest.raises(UserError, match="no packed adapters: format is None"):
        PackedAdapters(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "packed", "base_model": null, "dtype": "int8"}')
    with pytest.raises(UserError, match=r"store.json: field dtype"):
        PackedAdapters(tmp_path)


def test_a_shard_of_another_spec_is_damaged(tmp_path):
    fill(tmp_path / "one")
    other = PeftFormat(LoraSpec(SPEC.modules, num_layers=2, rank=1), "org/tiny")
    with PackedStore(tmp_path / "two", other, "hypernet-1"):
        pass
    path = "adapters-00000-000.safetensors"
    (tmp_path / "two" / path).write_bytes((tmp_path / "one" / path).read_bytes())
    assert len(PackedAdapters(tmp_path / "two")) == 0
