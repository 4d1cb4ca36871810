import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import peft
import pytest
import transformers

from t2l_jax.errors import UserError
from t2l_jax.io import adapter_store
from t2l_jax.io.adapter_store import AdapterStore, write_collection_card
from t2l_jax.io.peft import PeftFormat, load_peft
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

SPEC = LoraSpec((LoraModule("q_proj", 16, 16), LoraModule("v_proj", 16, 8)), num_layers=2, rank=2)
FILES = PeftFormat(SPEC, "org/tiny")
NAMES = [f"task{index}" for index in range(6)]
DESCRIPTIONS = [f"Do {name}.\n" for name in NAMES]


def weights_of(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {
        name: {side: rng.standard_normal((count, *shape), np.float32) for side, shape in shapes.items()}
        for name, shapes in SPEC.shapes().items()
    }


def fill(folder, names=NAMES, files=FILES, fingerprint="hypernet-1", **changes):
    """Write what is pending, two at a time; return its positions."""
    descriptions = changes.get("descriptions", [f"Do {name}.\n" for name in names])
    weights = weights_of(len(names))
    with AdapterStore(folder, files, fingerprint) as store:
        pending = store.pending(names, descriptions)
        for start in range(0, len(pending), 2):
            rows = pending[start : start + 2]
            batch = {name: {side: array[rows] for side, array in sides.items()} for name, sides in weights.items()}
            store.write([names[row] for row in rows], [descriptions[row] for row in rows], batch)
    return pending


def manifest(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_every_adapter_is_a_peft_folder_and_in_the_manifest(tmp_path):
    assert fill(tmp_path / "s") == list(range(6))
    weights = weights_of(6)
    for index, (name, record) in enumerate(zip(NAMES, manifest(tmp_path / "s"), strict=True)):
        adapter = load_peft(tmp_path / "s" / name)
        np.testing.assert_array_equal(adapter.weights["q_proj"]["a"], weights["q_proj"]["a"][index])
        expected = np.float32(SPEC.scale) * weights["v_proj"]["b"][index]
        np.testing.assert_array_equal(adapter.weights["v_proj"]["b"], expected)
        data = (tmp_path / "s" / name / "adapter_model.safetensors").read_bytes()
        assert record == {
            "name": name,
            "description": DESCRIPTIONS[index],
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["manifest.jsonl", "store.json", *NAMES]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_reads_it(tmp_path):
    fill(tmp_path / "s")
    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(config), tmp_path / "s" / "task3")
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    expected = np.einsum("ri,or->oi", weights_of(6)["v_proj"]["a"][3, 1], weights_of(6)["v_proj"]["b"][3, 1])
    np.testing.assert_allclose(layer.get_delta_weight("default").numpy(), SPEC.scale * expected, atol=1e-5)


def test_a_second_run_writes_only_what_is_missing_or_damaged(tmp_path):
    folder = tmp_path / "s"
    fill(folder, NAMES[:4])
    before = {record["name"]: record for record in manifest(folder)}
    truncated = folder / "task1" / "adapter_model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    (folder / "task2" / "adapter_config.json").write_text("{")
    (folder / ".aa.partial").mkdir()
    (folder / ".aa.partial" / "adapter_model.safetensors").write_bytes(b"half")
    untouched = (folder / "task0" / "adapter_model.safetensors").stat().st_mtime_ns
    assert fill(folder) == [1, 2, 4, 5]
    assert (folder / "task0" / "adapter_model.safetensors").stat().st_mtime_ns == untouched
    assert not (folder / ".aa.partial").exists()
    after = {record["name"]: record for record in manifest(folder)}
    assert list(after) == NAMES
    assert before["task0"] == after["task0"]
    assert fill(folder) == []


def test_every_adapter_has_its_card_and_one_without_is_still_whole(tmp_path):
    """Folders of earlier versions have no cards."""
    fill(tmp_path)
    texts = [(tmp_path / name / "README.md").read_text() for name in NAMES]
    assert [f"    Do {name}.\n" in text for name, text in zip(NAMES, texts, strict=True)] == [True] * 6
    assert "base_model:adapter:org/tiny" in texts[0]
    (tmp_path / NAMES[2] / "README.md").unlink()
    assert fill(tmp_path) == []


def test_the_card_of_a_folder_is_made_from_its_manifest(tmp_path):
    fill(tmp_path)
    write_collection_card(tmp_path, FILES.card)
    text = (tmp_path / "README.md").read_text()
    assert [f"| {name} | Do {name}&#46; |" in text for name in NAMES] == [True] * 6
    assert fill(tmp_path) == []  # and the folder is still a store
    (tmp_path / "manifest.jsonl").write_text('{"name": 3}\n')
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1: field name"):
        write_collection_card(tmp_path, FILES.card)
    assert (tmp_path / "README.md").read_text() == text


def test_a_manifest_is_there_only_while_it_is_true(tmp_path):
    fill(tmp_path, NAMES[:2])
    with pytest.raises(KeyboardInterrupt), AdapterStore(tmp_path, FILES, "hypernet-1") as store:
        write_and_interrupt(store)
    assert not (tmp_path / "manifest.jsonl").exists()
    fill(tmp_path, NAMES[:2])
    assert {record["name"] for record in manifest(tmp_path)} >= set(NAMES[:2])


def write_and_interrupt(store):
    store.write(["other"], ["text"], weights_of(1))
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "hypernet-2"}, "another fingerprint"),
        ({"files": PeftFormat(SPEC, "org/other")}, "another base_model"),
        ({"files": PeftFormat(SPEC, "org/tiny", "bfloat16")}, "another dtype"),
        ({"files": PeftFormat(LoraSpec(SPEC.modules, 2, 4), "org/tiny")}, "another spec"),
        ({"descriptions": [*DESCRIPTIONS[:5], "Do something else."]}, "task5 was made from another description"),
        ({"names": ["a", "a"]}, "given to two adapters"),
        ({"names": ["../x"]}, "path separator"),
        ({"names": ["store.json"]}, "cannot be named"),
        ({"names": ["readme.md"]}, "cannot be named"),
    ],
)
def test_what_does_not_belong_is_refused(tmp_path, changes, message):
    fill(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        fill(tmp_path, **changes)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    (tmp_path / ".download.partial").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        fill(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_processes_cannot_write_at_once(tmp_path):
    with AdapterStore(tmp_path, FILES, "x"), pytest.raises(UserError, match="another process"):
        fill(tmp_path, fingerprint="x")
    with pytest.raises(UserError, match="another fingerprint"):
        fill(tmp_path, fingerprint="y")
    fill(tmp_path, fingerprint="x")  # whoever failed has let go of the folder


def test_a_full_disk_reaches_the_caller(tmp_path, monkeypatch):
    fill(tmp_path, NAMES[:2])

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PeftFormat, "write", no_space)
    with pytest.raises(UserError, match=r"no space left on the disk of .*task2"):
        fill(tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.json", "task0", "task1"]
    assert fill(tmp_path) == [2, 3, 4, 5]


def test_the_queue_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_store, "QUEUE_BYTES", 3 * FILES.num_bytes)
    lengths = []
    with AdapterStore(tmp_path, FILES, "x") as store:
        for index in range(20):
            store.write([f"t{index}"], ["d"], weights_of(1))
            lengths.append(len(store._queue))
    assert max(lengths) <= 3
    assert len(manifest(tmp_path)) == 20


def test_padding_rows_are_left_out(tmp_path):
    with AdapterStore(tmp_path, FILES, "x") as store:
        store.write(["a"], ["d"], weights_of(8))
    assert [record["name"] for record in manifest(tmp_path)] == ["a"]


CHILD = """
import sys, time
import numpy as np
from t2l_jax.io.adapter_store import AdapterStore, write_collection_card
from t2l_jax.io.peft import PeftFormat
from t2l_jax.lora import LoraModule, LoraSpec

spec = LoraSpec((LoraModule("q_proj", 512, 512),), num_layers=4, rank=8)
names = [f"t{i:03d}" for i in range(200)]
with AdapterStore(sys.argv[1], PeftFormat(spec), "x") as store:
    for row in store.pending(names, names):
        weights = {m: {s: np.full((1, *shape), row, np.float32) for s, shape in sides.items()}
                   for m, sides in spec.shapes().items()}
        store.write([names[row]], [names[row]], weights)
        time.sleep(0.002)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_every_adapter_once_and_whole(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    root = Path(adapter_store.__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for goal in (30, 80, 130):
        child = subprocess.Popen(command, env=environment)
        while sum(1 for _ in folder.glob("t*")) < goal and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (folder / "manifest.jsonl").exists()
        for path in folder.glob("t*"):
            assert load_peft(path).spec.rank == 8
    subprocess.run(command, env=environment, check=True)
    records = manifest(folder)
    assert [record["name"] for record in records] == [f"t{index:03d}" for index in range(200)]
    assert len(list(folder.iterdir())) == 202
    for index in (0, 29, 30, 131, 199):
        adapter: Adapter = load_peft(folder / f"t{index:03d}")
        assert np.unique(adapter.weights["q_proj"]["a"]).tolist() == [index]
        data = (folder / f"t{index:03d}" / "adapter_model.safetensors").read_bytes()
        assert records[index]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "description.txt"])
@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_stands_in_the_place_of_an_adapters_file_is_replaced(tmp_path, file, what):
    fill(tmp_path)
    path = tmp_path / NAMES[2] / file
    path.unlink()
    path.mkdir() if what == "folder" else os.mkfifo(path)
    assert fill(tmp_path) == [2]
    assert path.is_file()
