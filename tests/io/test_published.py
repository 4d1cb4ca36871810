"""Published folders: what is written comes back, and what is damaged is named."""

import errno
import io
import json
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_published import NET, SPEC, reading, save_published, snapshot, tiny_config

from t2l_jax import hypernet
from t2l_jax.errors import UserError
from t2l_jax.io import published
from t2l_jax.io.files import atomic_write
from t2l_jax.io.published import (
    ModelConfig,
    load_card,
    load_model,
    load_template,
    model_card,
    publish,
    read_config,
    save_model,
)
from t2l_jax.lora import Adapter

NETS = {
    "L": NET,
    "L, learned offset": replace(NET, offset="learned"),
    "M, constants": replace(NET, head="M", init="sft"),
    "S, constants and frozen offset": replace(NET, head="S", init="sft", offset="frozen"),
}


@pytest.mark.parametrize("name", NETS)
def test_round_trip(tmp_path, name):
    config = tiny_config(hypernet=NETS[name], prompt="instruction")
    variables = hypernet.init(jax.random.key(3), config.hypernet, config.lora)
    assert ("constants" in variables) == ("constants" in name)
    save_model(tmp_path / "m", config, variables, "# Card\n", np.float32)
    found, loaded = load_model(tmp_path / "m")
    assert found == config
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "m" / "README.md").read_text() == "# Card\n"


def test_an_offset_comes_back_as_an_adapter(tmp_path):
    save_published(tmp_path / "m", tiny_config(hypernet=NETS["L, learned offset"]))
    offset = load_model(tmp_path / "m")[1]["params"]["offset"]
    assert isinstance(offset, Adapter)
    assert offset.spec == SPEC


def test_halves_take_half_the_space_and_come_back_as_float32(tmp_path):
    config = tiny_config()
    variables = hypernet.init(jax.random.key(0), config.hypernet, config.lora)
    save_model(tmp_path / "half", config, variables, "")
    save_model(tmp_path / "full", config, variables, "", np.float32)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}
    loaded = load_model(tmp_path / "half")[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), loaded, variables)


def test_a_small_deviation_of_standardised_outputs_survives(tmp_path):
    """Halves end at 6e-8."""
    config = tiny_config(hypernet=replace(NET, head_bias="none", standardised=True))
    variables = hypernet.init(jax.random.key(0), config.hypernet, config.lora)
    variables["constants"] = jax.tree.map(lambda leaf: 1e-9 * (1 + leaf), variables["constants"])
    save_model(tmp_path / "m", config, variables, "")
    loaded = load_model(tmp_path / "m")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded["constants"], variables["constants"])
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name.startswith("params/")} == {np.dtype(np.float16)}


def test_an_encoders_adapter_without_its_weights_is_missing(tmp_path):
    save_published(tmp_path / "m", tiny_config())
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_adapter": True}))
    atomic_write(tmp_path / "m" / "encoder" / "adapter_config.json", "{}")
    with pytest.raises(UserError, match=r"encoder: the text encoder's adapter is missing: fetch the whole folder"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("value", [np.nan, 7e4])  # the largest half is 65,504
def test_weights_that_halves_cannot_hold_are_not_written(tmp_path, value):
    config = tiny_config()
    variables = hypernet.init(jax.random.key(0), config.hypernet, config.lora)
    broken = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(value), variables)
    with pytest.raises(UserError, match=r"the weights params/.* are not finite, or too large for float16"):
        save_model(tmp_path / "m", config, broken, "")
    assert not any(tmp_path.iterdir())


def test_config_survives_json():
    config = tiny_config(hypernet=replace(NET, head="S", rotary_rows=True, offset="frozen"))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())), "f") == config


@pytest.fixture
def folder(tmp_path):
    return save_published(tmp_path / "m", tiny_config())


def edit_config(folder, edit):
    data = json.loads((folder / "config.json").read_text())
    edit(data)
    (folder / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("lora"), "field lora is missing"),
        (lambda c: c.update(lora=[]), "field lora: must be an object of fields, got"),
        (lambda c: c["hypernet"].update(depth=3), "field hypernet.depth is not known"),
        (lambda c: c["hypernet"].update(head="X"), "field hypernet.head: must be 'L', 'M' or 'S', got 'X'"),
        (lambda c: c["hypernet"].update(latent=False), "field hypernet.latent: must be a valid integer, got False"),
        (lambda c: c["hypernet"].update(rotary_rows=[1]), "field hypernet.rotary_rows"),
        (lambda c: c["hypernet"].update(dropout=float("nan")), "field hypernet.dropout"),
        (lambda c: c["hypernet"]["task"].update(dim=0), "field hypernet.task.dim"),
        (lambda c: c["hypernet"].update(task=None), "field hypernet.task"),
        (lambda c: c.update(prompt="none"), "field prompt: .*got 'none'"),
        (lambda c: c.update(base=3), "field base: "),
        (lambda c: c.update(encoder_adapter="false"), "field encoder_adapter: "),
        (lambda c: c["lora"].update(modules=["q_proj"]), "field lora.modules"),
        (lambda c: c["lora"]["modules"].update(q_proj=[16]), "field lora.modules.q_proj"),
        (lambda c: c["lora"].update(rank="two"), "field lora.rank"),
        (lambda c: c["lora"].update(rank=0), "field lora.rank"),
        (lambda c: c["lora"].update(rslora="no"), "field lora.rslora: must be a valid boolean, got 'no'"),
        (lambda c: c["lora"].update(alpha=1e300), "field lora.alpha"),
        (lambda c: c["lora"].update(alpha=10**400), "field lora.alpha"),
        (lambda c: c["lora"]["modules"].update(c_attn=[16, 16]), "c_attn"),
    ],
)
def test_a_config_of_something_else_is_named(folder, edit, message):
    edit_config(folder, edit)
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert str(error.value).count("config.json") == 1


HUGE = 2**31 - 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["hypernet"].update(latent=2**20, head_in=2**20),
        lambda c: c["hypernet"].update(head="S", init="sft", offset="frozen"),
        lambda c: c["hypernet"]["task"].update(dim=2**20),
        lambda c: c["lora"].update(rank=HUGE, num_layers=HUGE, modules={"q_proj": [HUGE, HUGE]}),
    ],
)
def test_sizes_are_those_of_the_tensors_before_anything_is_built(folder, edit):
    edit_config(folder, edit)
    with pytest.raises(UserError, match=r"model\.safetensors: tensor .* its config\.json asks for"):
        load_model(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["params/task/norm/scale"] = tensors["params/task/norm/scale"].astype(np.float64)
    tensors["params/task/norm/scale"][3] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"tensor params/task/norm/scale is not finite, or too large for float32"):
        load_model(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.config\.json"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


def test_a_run_folder_is_told_from_its_model(folder, tmp_path):
    folder.rename(tmp_path / "model")
    with pytest.raises(UserError, match=rf"a run folder, no model: give {tmp_path / 'model'}"):
        load_model(tmp_path)


def test_a_config_that_is_no_json_is_named(folder):
    (folder / "config.json").write_text('{"hypernet": ')
    with pytest.raises(UserError, match=r"^[^:]*config\.json: not JSON"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_weights_cut_short_are_named(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or cut short"):
        load_model(folder)


def test_tensors_that_do_not_fit_the_config_are_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "params/head_v_proj/kernel"
    for changed, message in (
        ({name: tensors[name][:, :-1]}, rf"{name} is \(16, 47\).* asks for \(16, 48\)"),
        ({"params/extra": np.zeros(3, np.float32)}, "params/extra is .*none"),
    ):
        save_file({**tensors, **{key: np.ascontiguousarray(value) for key, value in changed.items()}}, path)
        with pytest.raises(UserError, match=message):
            load_model(folder)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_model(folder)


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    before = snapshot(folder.parent)

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(published, "save", no_space)
    with pytest.raises(UserError, match="no space left"):
        save_published(folder, tiny_config(), seed=1)
    assert snapshot(folder.parent) == before


def test_publishing_copies_the_weights_and_changes_what_was_asked(tmp_path):
    """The encoder's adapter and alpha are other ones; the folder loads, and the card says so."""
    config = tiny_config(encoder="hf:org/encoder")
    variables = hypernet.init(jax.random.key(0), config.hypernet, config.lora)
    save_model(tmp_path / "run" / "model", config, variables, model_card(config, "Trained on two tasks."))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "hf:org/encoder"}')
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    made = publish(tmp_path / "run", tmp_path / "out", encoder=tmp_path / "adapter", alpha=13.6)
    assert made == replace(config, lora=replace(config.lora, alpha=13.6), encoder_adapter=True)
    assert load_model(tmp_path / "out")[0] == made
    weights = [tmp_path / folder / "model.safetensors" for folder in ("run/model", "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (tmp_path / "out/encoder/adapter_model.safetensors").read_bytes() == b"weights"
    card = (tmp_path / "out/README.md").read_text()
    for part in (
        "`hf:org/encoder` with the adapter in encoder/",
        "Trained on two tasks.",
        "alpha 13.6; before it was 16",
    ):
        assert part in card
    again = publish(tmp_path / "out", tmp_path / "again")  # a published folder, as it is
    assert snapshot_of(tmp_path / "again") == snapshot_of(tmp_path / "out")
    assert again == made


def snapshot_of(folder):
    return {path.removeprefix(str(folder)): data for path, data in snapshot(folder).items()}


def test_what_cannot_be_published_is_refused_and_nothing_is_written(tmp_path):
    save_published(tmp_path / "model", tiny_config(encoder="hf:org/encoder"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "hf:org/other"}')
    with pytest.raises(UserError, match="adapter: adapts hf:org/other, the model reads hf:org/encoder"):
        publish(tmp_path / "model", tmp_path / "out", encoder=tmp_path / "adapter")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        publish(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="alpha above zero"):
        publish(tmp_path / "model", tmp_path / "out", alpha=0.0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        publish(tmp_path / "model", tmp_path / "adapter")


@pytest.mark.parametrize("reads", ["description", "instance", "both"])
def test_what_a_model_reads_is_published(reads, tmp_path):
    config = reading(reads)
    assert load_model(save_published(tmp_path, config))[0] == config
    lines = {
        "description": 'model.generate(["Answer with the last word."])',
        "instance": 'model.generate(instances=["red green blue"])',
        "both": 'model.generate(["Answer with the last word."], ["red green blue"])',
    }
    assert lines[reads] in model_card(config, "")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "binary"])
def test_a_card_that_cannot_be_read_is_none_and_the_model_is_loaded(folder, kind):
    path = folder / "README.md"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "binary":
        path.write_bytes(b"a \xff b")
    assert load_card(folder) == ("a \ufffd b" if kind == "binary" else None)
    assert load_model(folder)[0] == tiny_config()


def test_a_configuration_that_does_not_say_what_it_reads_reads_descriptions(tmp_path):
    folder = save_published(tmp_path, tiny_config())
    data = json.loads((folder / "config.json").read_text())
    assert data.pop("reads") == "description"
    (folder / "config.json").write_text(json.dumps(data))
    assert load_model(folder)[0] == tiny_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": "pictures"}, r"config\.json: field reads: .*'pictures'"),
        ({"reads": "identity"}, "config.json: reads is identity, encoder hash: task identities have no text encoder"),
        ({"encoder": None}, 'reads is description, encoder null: .* write "reads": "identity"'),
    ],
)
def test_a_model_that_reads_what_it_cannot_is_refused(changes, message, tmp_path):
    folder = save_published(tmp_path, tiny_config())
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_texts_are_utf8_whatever_the_locale_is(tmp_path, monkeypatch):
    config, variables = load_model(save_published(tmp_path / "plain", tiny_config()))
    card = "---\nlicense: mit\n---\n\n# Kärtchen\n"
    monkeypatch.setattr(io, "text_encoding", lambda encoding, *_: encoding or "ascii")  # what pathlib asks
    save_model(tmp_path / "m", config, variables, card, np.float32, chat_template="«{{ x }}»")
    publish(tmp_path / "m", tmp_path / "copy")
    for folder in (tmp_path / "m", tmp_path / "copy"):
        assert load_template(folder, read_config(folder)) == "«{{ x }}»"
        assert load_card(folder) == card
