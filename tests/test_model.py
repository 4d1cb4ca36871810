"""The published hypernetwork as a user meets it."""

import copy
import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_server import connect, running
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.numpy import load_file
from tiny_published import NET, SPEC, HashEncoder, reading, save_base, save_published, tiny_config

import t2l_jax
from t2l_jax import model as model_module
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, write_adapters
from t2l_jax.io import published
from t2l_jax.llm import LLM
from t2l_jax.lora import LoraModule, LoraSpec, merge
from t2l_jax.model import Model, describe, load

TEXTS = ["Say the last word.", "Say the first word.", "Answer with one"]


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    """Every model of this file embeds by hashing."""
    encoder = HashEncoder()
    monkeypatch.setattr(model_module, "load_encoder", lambda source, **_: encoder)
    return encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    return save_published(path / "model", tiny_config(save_base(path / "base")))


@pytest.fixture
def model(folder):
    return load(folder)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_generate_is_the_hypernetwork_whatever_it_is_padded_to(model, encoder):
    adapters = model.generate(TEXTS)  # three, padded to four
    assert adapters.batch_shape == (3,)
    assert adapters.spec == SPEC
    assert encoder.texts[2] == "Answer with one."
    z = jnp.asarray(HashEncoder().embed(TEXTS))
    assert_close(adapters, write_adapters(model.config.hypernet, SPEC, model.variables, Condition(z=z)))
    for index in (0, 2):
        assert_close(model.generate(TEXTS[index : index + 1])[0], adapters[index])
    first, second = (adapters[index].weights["v_proj"]["b"] for index in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    assert model.generate([]).batch_shape == (0,)


def test_the_base_model_is_not_touched(tmp_path, monkeypatch):
    model = load(str(save_published(tmp_path, tiny_config("no/such/base"))))
    monkeypatch.setattr(LLM, "from_files", lambda *_, **__: pytest.fail("the base model is loaded"))
    assert len(model.generate(TEXTS)) == 3
    monkeypatch.undo()
    with pytest.raises(UserError, match="no/such/base"):
        model.load_base()


def test_texts_that_cannot_be_embedded_are_refused(model):
    with pytest.raises(UserError, match="description 2 is empty"):
        model.generate(["Say it.", " "])
    with pytest.raises(UserError, match="1,000,000 characters"):
        model.generate(["x" * 1_000_000])


def test_an_encoder_of_another_width_is_refused(folder, encoder):
    encoder.dim = 384
    with pytest.raises(UserError, match="width is 384, the hypernetwork reads 12"):
        load(folder).generate(TEXTS)


def test_adapters_work_in_the_base_model(model):
    llm = model.load_base()
    adapters = model.generate(TEXTS)
    tokens = np.arange(3 * 6).reshape(3, 6) % 20
    for index, logits in enumerate(llm(tokens, adapters)):
        alone = llm.replace(params=merge(llm.params, adapters[index]))
        np.testing.assert_allclose(logits, alone(tokens[index]), atol=1e-4)
    assert np.abs(llm(tokens, adapters) - llm(tokens)).max() > 1e-2
    assert len(llm.chat(["one two"], adapter=adapters[0])) == 1


def test_a_base_that_the_adapters_do_not_fit_is_refused(model):
    other = LoraSpec((LoraModule("q_proj", 16, 32),), num_layers=2)
    misfit = Model(replace(model.config, lora=other), model.variables)
    with pytest.raises(UserError, match="q_proj is 16 -> 32, the base model's 16 -> 16"):
        misfit.load_base()


def test_a_fingerprint_is_that_of_configuration_and_weights(model, folder):
    assert load(folder).fingerprint == model.fingerprint
    assert Model(replace(model.config, base_name="org/other"), model.variables).fingerprint != model.fingerprint
    leaves, structure = jax.tree.flatten(model.variables)
    leaves[-1] = leaves[-1] + np.float32(1e-6)
    assert Model(model.config, jax.tree.unflatten(structure, leaves)).fingerprint != model.fingerprint


def test_describe(folder, model):
    text = describe(str(folder))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    for part in (
        "org/tiny",
        "hash, input width 12",
        f"L, {count / 1e6:.1f} M",
        "q_proj, v_proj; rank 2",
        "scale 11.314",
    ):
        assert part in text


def test_the_package_names_its_models(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PRETRAINED", folder.parent)
    monkeypatch.setattr(published, "DEFAULT_MODEL", folder.name)
    assert published.pretrained_models() == [folder.parent / "base", folder]
    assert load().fingerprint == load(folder).fingerprint == load(folder.name).fingerprint
    monkeypatch.setattr(published, "PRETRAINED", tmp_path / "none")
    assert published.pretrained_models() == []


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)


def test_the_library_is_short_to_use():
    assert t2l_jax.load is load
    assert t2l_jax.Model is Model
    assert all(getattr(t2l_jax, name) is not None for name in t2l_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = t2l_jax.nothing


def test_a_hypernetwork_starts_as_the_base_model(tmp_path):
    config = tiny_config(hypernet=replace(NET, init="sft"))
    adapters = load(save_published(tmp_path, config)).generate(TEXTS)
    assert all(np.all(np.asarray(sides["b"]) == 0) for sides in adapters.weights.values())


def test_what_is_packaged_is_small():
    """At most 20 MB with its text encoder's adapter: everybody who installs the package downloads it."""
    folder = Path(t2l_jax.__file__).parent / "pretrained"
    assert 0 < sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20e6


@pytest.mark.parametrize("reads", ["instance", "both"])
def test_adapters_are_written_from_what_the_model_reads(reads, tmp_path):
    model = load(save_published(tmp_path, reading(reads)))
    inputs = ["red blue", "one two", "red blue"]
    texts = TEXTS if reads == "both" else None
    embed = HashEncoder().embed
    read = np.concatenate(([embed(TEXTS)] if texts else []) + [embed(inputs)], axis=-1)
    found = model.generate(texts, inputs)
    assert_close(found, write_adapters(model.config.hypernet, SPEC, model.variables, Condition(z=jnp.asarray(read))))
    b = found.weights["v_proj"]["b"]
    assert np.any(b[0] != b[1])
    assert np.array_equal(b[0], b[2]) == (reads == "instance")


@pytest.mark.parametrize(
    ("reads", "texts", "inputs", "message"),
    [
        ("description", TEXTS, ["one"] * 3, "reads descriptions: leave the instances out"),
        ("description", None, None, "reads descriptions: give descriptions"),
        ("instance", TEXTS, ["one"] * 3, "reads instances: leave the descriptions out"),
        ("instance", None, None, "reads instances: give instances"),
        ("both", TEXTS, None, "reads descriptions and instances: give instances, too"),
        ("both", None, ["one"], "reads descriptions and instances: give descriptions, too"),
        ("both", TEXTS, ["one"], "3 descriptions and 1 instances: each pair has one of both"),
        ("both", TEXTS, ["one", " ", "two"], "instance 2 is empty"),
    ],
)
def test_what_a_model_does_not_read_or_lacks_is_named(reads, texts, inputs, message, tmp_path):
    model = load(save_published(tmp_path, reading(reads)))
    with pytest.raises(UserError, match=message):
        model.generate(texts, inputs)


def test_describe_says_what_is_read(tmp_path):
    assert "reads         descriptions and instances\n" in describe(save_published(tmp_path / "a", reading("both")))
    assert "reads         descriptions\n" in describe(save_published(tmp_path / "b", tiny_config()))


def equal(found, wanted):
    """Whether two models are the same, but for where their files are."""
    assert found.config == wanted.config
    assert jax.tree.structure(found.variables) == jax.tree.structure(wanted.variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, wanted.variables)
    assert found.fingerprint == wanted.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.generate(TEXTS).weights, wanted.generate(TEXTS).weights)
    return True


def test_save_pretrained_and_from_pretrained_change_nothing(model, tmp_path):
    assert model.save_pretrained(tmp_path / "new" / "m") is None
    assert equal(Model.from_pretrained(tmp_path / "new" / "m"), model)
    assert equal(load(tmp_path / "new" / "m"), model)
    files = sorted(path.name for path in (tmp_path / "new" / "m").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "new" / "m" / "config.json").read_text())
    assert config == json.loads(json.dumps(model.config.to_dict()))  # ours, and nothing else
    card = (tmp_path / "new" / "m" / "README.md").read_text()
    assert card.endswith("---\n\n# A tiny model\n")  # it had no YAML
    load(tmp_path / "new" / "m").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card


def test_what_belongs_to_a_model_is_saved_with_it(model, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), model.variables)
    own = replace(model, variables=halves, encoder_adapter=tmp_path / "adapter", chat_template="{{ x }}")
    own.save_pretrained(tmp_path / "m")
    found = load(tmp_path / "m")
    assert found.config == replace(model.config, encoder_adapter=True, chat_template=True)
    assert (found.encoder_adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert found.chat_template == "{{ x }}"
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}  # as nothing is lost
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.library_name == "t2l_jax"
    assert str(found.generate_model_card().data) == str(card.data)


def test_save_pretrained_leaves_what_is_there(model, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    with pytest.raises(UserError, match="cannot be"):
        model.save_pretrained(tmp_path / "config.json" / "m")


def test_a_frozen_model_is_a_mixin_and_a_dataclass(model):
    assert isinstance(model, ModelHubMixin)
    changed = replace(model, trust_remote_code=True)
    assert changed.config is model.config
    assert (model.card, changed.card) == ("# A tiny model\n", None)  # what it says may be true no more
    assert copy.copy(model).card == model.card
    with pytest.raises(FrozenInstanceError):
        model.card = "x"
    assert [field.name for field in fields(Model)][:2] == ["config", "variables"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running() as found:
        connect(monkeypatch, found, tmp_path / "home")
        yield found


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_pushed_to_the_hub_and_pulled_it_is_the_same(model, hub, monkeypatch):
    url = model.push_to_hub("org/tiny-net")
    assert url.startswith(f"{hub.url}/org/tiny-net/commit/")
    assert sorted(hub.repos["org/tiny-net"].files) == ["README.md", "config.json", "model.safetensors"]
    pulled = Model.from_pretrained("org/tiny-net")
    assert equal(pulled, model)
    assert equal(load("hf:org/tiny-net"), pulled)
    revision = hub.repos["org/tiny-net"].commits[-1]
    assert equal(Model.from_pretrained("org/tiny-net", revision=revision), pulled)
    hub.seen.clear()
    assert equal(Model.from_pretrained("org/tiny-net", local_files_only=True), model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what is in the cache is enough
    assert equal(Model.from_pretrained("org/tiny-net"), model)
    assert equal(load("hf:org/tiny-net"), model)
    assert not hub.seen
    with pytest.raises(UserError, match=r"hf:org/other: could not be fetched .*offline, only models"):
        Model.from_pretrained("org/other")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_what_cannot_be_pulled_is_said(model, hub, monkeypatch, tmp_path):
    for name in ("org/none", "../x"):
        with pytest.raises(UserError, match="could not be fetched"):
            Model.from_pretrained(name)
    hub.seen.clear()
    for name in ("a b", "hf:org/none", "smollm2-family"):
        with pytest.raises(UserError, match=f"^{name}: no folder: .* takes one, or org/name of the hub; t2l_jax.load"):
            Model.from_pretrained(name)
    assert not hub.seen
    model.push_to_hub("org/mine", private=True)
    with pytest.raises(UserError, match="org/mine@v9: could not be fetched"):
        Model.from_pretrained("org/mine", revision="v9")
    connect(monkeypatch, hub, tmp_path / "another", "hf_other")
    with pytest.raises(UserError, match="org/mine: could not be fetched"):
        Model.from_pretrained("org/mine")
    assert equal(Model.from_pretrained("org/mine", token="hf_reads"), model)


@pytest.mark.parametrize("config", [b"[1]", b"{", b'{"hypernet": 1, "encoder_adapter": true}', b"\xff"])
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_damaged_repository_is_refused_as_a_folder_is(model, hub, config):
    model.push_to_hub("org/mine")
    hub.repos["org/mine"].files["config.json"] = (config, False)
    with pytest.raises(UserError, match=r"config\.json"):
        Model.from_pretrained("org/mine")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_of_a_repository_only_safe_files_are_fetched(model, hub):
    model.push_to_hub("org/mine")
    for name in ("pytorch_model.bin", "modeling.py", "x.pkl"):
        hub.repos["org/mine"].files[name] = (b"import os", False)
    Model.from_pretrained("org/mine")
    asked = {path.split("/")[-1] for _, path, _ in hub.seen if "/resolve/" in path}
    assert asked == {"README.md", "config.json", "model.safetensors"}
