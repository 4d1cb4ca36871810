"""Adapters by name: written for descriptions once, kept while there is room, made, mixed, uploaded and downloaded."""

import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_published import SPEC

from t2l_jax.errors import UserError
from t2l_jax.lora import LoraModule, LoraSpec, dense_delta, init_adapter
from t2l_jax.serving import adapters as adapters_module
from t2l_jax.serving.adapters import Entry, Registry, Unknown, below, from_zip, most_bytes, to_zip
from t2l_jax.serving.engine import Busy

WAIT = 60.0


@pytest.fixture
def make(model, llm):
    made = []

    def registry(most=None, rank=2):
        made.append(Registry(model, llm.config, replace(SPEC, rank=rank), most))
        return made[-1]

    yield registry
    for one in made:
        one.close()


def same(one, other):
    return all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def drawn(seed, spec=SPEC):
    adapter = init_adapter(jax.random.key(seed), spec)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(seed + 1), leaf.shape), adapter)


def test_a_description_is_written_once_as_the_model_writes_it(make, model):
    registry = make()
    first = registry.find("t2l:Say two").result(WAIT)
    assert same(first.adapter, model.generate(["Say two"])[0])
    assert registry.find("t2l: Say two. ").result(WAIT) is first  # the same description
    assert registry.get("t2l:Say two.") is first
    assert (registry.written, registry.cached, registry.named()) == (1, 1, [])
    with pytest.raises(Unknown):
        registry.get("t2l:Say three")


def test_descriptions_that_come_together_are_written_together(make, model, monkeypatch):
    """While one is written the others wait, and are one batch; equal ones are one adapter."""
    registry, batches, go = make(), [], threading.Event()
    generate = type(model).generate

    def slow(self, texts):
        batches.append(list(texts))
        assert go.wait(WAIT)
        return generate(self, texts)

    monkeypatch.setattr(type(model), "generate", slow)
    first = registry.find("t2l:First")
    while not batches:
        pass
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda index: registry.find(f"t2l:Task {index % 6}"), range(12)))
    go.set()
    entries = [future.result(WAIT) for future in [first, *futures]]
    assert [len(batch) for batch in batches] == [1, 6]
    assert len({id(entry) for entry in entries}) == 7


def test_the_cache_forgets_what_was_used_longest_ago_and_nothing_in_use(make):
    registry = make(most=2)
    used = registry.find("t2l:used").result(WAIT)
    with registry.using(used):
        for name in "abca":
            registry.find(f"t2l:{name}").result(WAIT)
        assert registry.get("t2l:used") is used
        assert registry.cached == 2
        with pytest.raises(Unknown):
            registry.get("t2l:c")
    registry.find("t2l:a").result(WAIT)
    registry.find("t2l:d").result(WAIT)
    with pytest.raises(Unknown):
        registry.get("t2l:used")
    assert registry.get("t2l:a")


def test_failures_reach_those_who_wait_and_the_next_are_served(make, model, monkeypatch, caplog):
    registry = make()

    def fail(self, texts):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "generate", fail)
        future = registry.find("t2l:x")
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(WAIT)
    assert registry.find("t2l:x").result(WAIT)
    assert "adapters could not be written" in caplog.text
    for name in ("t2l:", "t2l:  ", "t2l:\ud800", "t2l:" + 30_000 * "x"):
        with pytest.raises(UserError, match="the description"):
            registry.find(name)
    with pytest.raises(Unknown):
        registry.find("nobody")


def test_too_many_that_wait_are_busy_and_a_closed_registry_too(make, model, monkeypatch):
    monkeypatch.setattr(adapters_module, "MOST_WAITING", 2)
    registry, begun, go = make(), threading.Event(), threading.Event()

    def wait(self, texts):
        begun.set()
        assert go.wait(WAIT)
        raise UserError("no")

    monkeypatch.setattr(type(model), "generate", wait)
    registry.find("t2l:running")
    assert begun.wait(WAIT)
    waiting = [registry.find(f"t2l:{index}") for index in range(2)]
    with pytest.raises(Busy):
        registry.find("t2l:one more")
    registry._closed = True
    go.set()
    registry.close()
    for future in waiting:
        with pytest.raises(Busy):
            future.result(WAIT)
    with pytest.raises(Busy):
        registry.find("t2l:later")


def test_named_adapters(make):
    registry = make(most=2, rank=3)
    own = drawn(0)
    entry = registry.add(Entry("one", own, "upload"))
    assert registry.find("one").result(WAIT) is registry.get("one") is entry
    assert entry.adapter.spec.rank == 3
    for name, delta in dense_delta(entry.adapter).items():
        np.testing.assert_allclose(delta, dense_delta(own)[name], rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="'one' already"):
        registry.add(Entry("one", own, "upload"))
    assert registry.add(Entry("one", drawn(5), "upload"), replace=True) is registry.get("one")
    registry.add(Entry("two", own, "upload"))
    with pytest.raises(UserError, match="holds 2 adapters, as many as it can"):
        registry.add(Entry("three", own, "upload"))
    registry.remove("one")
    assert [each.name for each in registry.named()] == ["two"]
    with pytest.raises(Unknown):
        registry.remove("one")
    with pytest.raises(UserError, match="rank is 4, and this server's at most 3"):
        registry.add(Entry("four", drawn(0, replace(SPEC, rank=4)), "upload"))


@pytest.mark.parametrize("name", ["t2l:Say two.", "org/tiny", "", "a/b", "..", "x" * 300])
def test_names_that_are_taken_or_no_names(make, name):
    with pytest.raises(UserError, match="name"):
        make().check(name)


def test_a_download_is_a_peft_folder_and_can_be_uploaded(tmp_path, llm):
    from peft import PeftConfig
    from safetensors.numpy import load_file

    adapter = drawn(3)
    data = to_zip(Entry("one", adapter, "description", "Say two."), "org/tiny")
    zipfile.ZipFile(io.BytesIO(data)).extractall(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == "org/tiny"
    assert (tmp_path / "description.txt").read_text() == "Say two."
    stored = load_file(tmp_path / "adapter_model.safetensors")
    a = stored["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(a, adapter.weights["q_proj"]["a"][1])
    back = from_zip(data, llm.config, SPEC)
    for name, delta in dense_delta(back).items():
        np.testing.assert_allclose(delta, dense_delta(adapter)[name], rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=f"the upload: its rank is {SPEC.rank}, and at most 1 is read here"):
        from_zip(data, llm.config, replace(SPEC, rank=1))


def zipped(files, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_uploads_that_are_none_are_refused(llm):
    good = to_zip(Entry("one", drawn(0), "upload"), "org/tiny")
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    bomb = zipped(files | {weights: bytes(most_bytes(SPEC) + 1)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < most_bytes(SPEC) // 100
    other = LoraSpec((LoraModule("o_proj", 16, 16),), num_layers=2, rank=2)
    refusals = {
        "no zip file, or damaged": b"hello",
        "has no adapter_config.json": zipped({weights: files[weights]}),
        "has no adapter_model.safetensors": zipped({config: files[config], "../" + weights: files[weights]}),
        "has more than": bomb,
        "the upload/adapter_model.safetensors: damaged": zipped(files | {weights: files[weights][:-9]}),
        "the upload/adapter_config.json": zipped(files | {config: b"{"}),
    }
    for message, data in refusals.items():
        with pytest.raises(UserError, match=message) as caught:
            from_zip(data, llm.config, SPEC)
        assert "/tmp" not in str(caught.value)
    with pytest.raises(UserError, match="no zip file, or damaged"):
        from_zip(good[: len(good) // 2], llm.config, SPEC)
    assert from_zip(
        to_zip(Entry("o", init_adapter(jax.random.key(0), other), "x"), "b"), llm.config, SPEC
    ).spec == replace(other, alpha=2.0, rslora=False)


def test_only_paths_below_the_opened_folder_are_read(tmp_path):
    opened, outside = tmp_path / "opened", tmp_path / "outside"
    (opened / "one").mkdir(parents=True)
    outside.mkdir()
    (opened / "link").symlink_to(outside)
    assert below(opened, "one") == below(opened, str(opened / "one")) == (opened / "one").resolve()
    for path in ("../outside", "one/../../outside", str(outside), "link", "/", "/etc", "a\0b", "../opened2"):
        with pytest.raises(UserError, match="lora_path"):
            below(opened, path)
    with pytest.raises(UserError, match="--adapters FOLDER"):
        below(None, "one")
