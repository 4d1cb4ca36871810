"""Text to z in JAX against sentence-transformers on the same folders; what another encoder is asked for."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from encoder_adapters import save_encoder_adapter
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize
from tiny_encoders import SIZES, WIDTH, edit, save_encoder

from t2l_jax.encoder import Encoder, flax_encoder, load_encoder, prepare, sentence
from t2l_jax.encoder.adapter import with_alpha
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.sentence import z_of_rows
from t2l_jax.encoder.sentence_transformers import SentenceEncoder
from t2l_jax.errors import UserError
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter, dense_delta

pytestmark = pytest.mark.slow  # importing sentence-transformers takes seconds
TEXTS = [
    "Sort it.",
    "a",
    "Größer als ÉCLAIR!",
    "the longest of all of these words, cut where the model ends.",
    "x y z.",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "encoder"))


def reference(folder: Path) -> np.ndarray:
    """What sentence-transformers computes of TEXTS, as z."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    embeddings = model.encode([prepare(text, "it") for text in TEXTS], show_progress_bar=False)
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True) * embeddings.shape[1] ** 0.5


def assert_agrees(folder: Path) -> Encoder:
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, FlaxEncoder)
    expected = reference(folder)
    assert encoder.dim == expected.shape[1]
    np.testing.assert_allclose(encoder.embed(TEXTS), expected, rtol=1e-4, atol=1e-5)
    return encoder


def test_texts_are_divided_over_the_devices(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(str(whole))
    alone = [encoder.embed([text]) for text in TEXTS]  # rows that the devices do not divide
    seen = []

    def embed_rows(config: Any, params: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        seen.append((len(tokens), {shard.data.shape[0] for shard in tokens.addressable_shards}))
        return sentence.embed_rows(config, params, tokens, mask)

    monkeypatch.setattr(flax_encoder, "embed_rows", embed_rows)
    np.testing.assert_allclose(encoder.embed(TEXTS * 4)[:5], np.concatenate(alone), rtol=1e-4, atol=1e-5)
    assert seen == [(32, {4})]


ROPE = {"rope_type": "default", "rope_theta": 50.0}
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "bert": lambda folder: save_encoder(folder),
    "no length but that of tokenizer and positions": lambda folder: save_encoder(folder, length=None),
    "gte": lambda folder: save_encoder(folder, transformers.GteConfig(**SIZES, rope_parameters=ROPE)),
    "roberta": lambda folder: save_encoder(folder, transformers.RobertaConfig(**SIZES, pad_token_id=0)),
    "several poolings": lambda folder: save_encoder(folder, pooling=("cls", "mean_sqrt_len_tokens", "max")),
    "weighted mean": lambda folder: save_encoder(folder, pooling="weightedmean"),
    "last token": lambda folder: save_encoder(folder, pooling="lasttoken"),
    "dense": lambda folder: save_encoder(folder, None, Dense(WIDTH, 5), Normalize(), Dense(5, 7, bias=False)),
    "dense with relu": lambda folder: save_encoder(folder, None, Dense(WIDTH, 9, activation_function=torch.nn.ReLU())),
    "dropout": lambda folder: save_encoder(folder, None, Dropout(0.5)),
    "truncated": lambda folder: save_encoder(folder, truncate_dim=7),
    "prompt": lambda folder: save_encoder(folder, prompts={"query": "ask: ", "d": ""}, default_prompt_name="query"),
    "prompts unused": lambda folder: save_encoder(folder, prompts={"query": "ask: "}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_z_is_that_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    FOLDERS[name](tmp_path / "encoder")
    assert_agrees(tmp_path / "encoder")


def unbundle(folder: Path) -> None:
    """As folders of before were: vocab.txt, options of the tokenizer, one boolean for each pooling."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    (folder / "tokenizer.json").unlink()
    options = {"tokenizer_class": "BertTokenizer", "backend": None, "do_lower_case": True}
    edit(folder / "tokenizer_config.json", **options)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "vocab.txt alone": unbundle,
    "poolings as flags": lambda folder: (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    ),
    "no pooling named": lambda folder: (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH})
    ),
    "texts cut on the left": lambda folder: edit(folder / "tokenizer_config.json", truncation_side="left"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_older_folders_say_means_the_same(name: str, folder: Path) -> None:
    CHANGES[name](folder)
    assert_agrees(folder)


def test_texts_are_lowercased_if_the_folder_says_so(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shouted = load_encoder(str(folder)).embed(["SORT IT."])
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    encoder = assert_agrees(folder)
    np.testing.assert_array_equal(encoder.embed(["SORT IT."]), encoder.embed(["sort it."]))
    assert np.abs(encoder.embed(["SORT IT."]) - shouted).max() > 0.1


def test_its_fingerprint_is_that_of_the_folder_run_by_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    save_encoder_adapter(tmp_path / "adapter", transformers.BertModel(transformers.BertConfig(**SIZES)), str(folder))
    for adapter in (None, tmp_path / "adapter"):
        ours = FlaxEncoder.load(resolve(folder), adapter=adapter)
        assert ours.fingerprint == SentenceEncoder.load(resolve(folder), adapter=adapter).fingerprint


def test_an_adapter_is_what_sentence_transformers_makes_of_it(folder: Path, tmp_path: Path) -> None:
    save_encoder_adapter(tmp_path / "adapter", transformers.BertModel(transformers.BertConfig(**SIZES)), str(folder))
    encoder = load_encoder(str(tmp_path / "adapter"))
    assert isinstance(encoder, FlaxEncoder)
    assert encoder.adapter == tmp_path / "adapter"
    theirs = SentenceEncoder.load(resolve(folder), adapter=tmp_path / "adapter")
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs.embed(TEXTS), rtol=1e-3, atol=1e-4)
    assert np.abs(encoder.embed(TEXTS) - load_encoder(str(folder)).embed(TEXTS)).max() > 0.1


def test_what_the_encoder_cannot_read_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(str(folder))
    with caplog.at_level(logging.WARNING):
        z = encoder.embed(["w" * 21, "x" * 22, "z" * 60, "a" * 20 + "!"])
    (record,) = caplog.records
    assert "2 of 4 descriptions have more than the 24 tokens" in record.message
    assert "the first begins 'x" in record.message  # with a full stop and the marks at the ends 25
    np.testing.assert_allclose(z[2], encoder.embed(["z" * 90])[0], rtol=1e-4, atol=1e-5)


def test_a_text_is_embedded_alike_in_any_company(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    texts = ["word " * (1 + index % 5) + "abcdefghijklmnopqrstuvwxyz"[index % 26] for index in range(300)]
    z = encoder.embed(texts)
    for index in (0, 13, 299):
        np.testing.assert_allclose(z[index], encoder.embed([texts[index]])[0], rtol=1e-4, atol=1e-5)
    assert encoder.embed([]).shape == (0, WIDTH)


def test_minilm_and_its_published_adapter_are_those_of_sentence_transformers(minilm: Path, optimised: None) -> None:
    published = Path(__file__).parents[2] / "t2l_jax" / "pretrained" / "smollm2-family" / "encoder"
    texts = ["Answer with the longest word", "¿Qué? 数 ünï", "Add the two numbers.", "Translate. " * 200]
    for adapter in (None, published):
        ours = FlaxEncoder.load(resolve(minilm), adapter=adapter).embed(texts)
        theirs = SentenceEncoder.load(resolve(minilm), adapter=adapter).embed(texts)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


ELSEWHERE: dict[str, Callable[[Path], Any]] = {
    r"the module 'LayerNorm'": lambda folder: save_encoder(folder, None, LayerNorm(WIDTH)),
    r"the architecture 'distilbert'": lambda folder: save_encoder(
        folder,
        transformers.DistilBertConfig(vocab_size=SIZES["vocab_size"], dim=12, n_layers=1, n_heads=2, hidden_dim=16),
    ),
    r"the activation 'mish'": lambda folder: save_encoder(folder, transformers.BertConfig(**SIZES, hidden_act="mish")),
    r"the activation 'torch\.nn\.modules\.activation\.Mish'": lambda folder: save_encoder(
        folder, None, Dense(WIDTH, 4, activation_function=torch.nn.Mish())
    ),
    r"use_residual = True": lambda folder: save_encoder(folder, None, Dense(WIDTH, 4, use_residual=True)),
}


@pytest.mark.parametrize("reason", ELSEWHERE)
def test_sentence_transformers_takes_over_and_says_so(
    reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ELSEWHERE[reason](tmp_path / "encoder")
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(str(tmp_path / "encoder"))
    assert isinstance(encoder, SentenceEncoder)
    np.testing.assert_allclose(encoder.embed(TEXTS), reference(tmp_path / "encoder"), atol=1e-4)
    said = f"sentence-transformers runs this encoder, since {reason} is not computed in JAX"
    assert any(re.search(said, record.message) for record in caplog.records)


def damaged_weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def edit_weights(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit_weights


QUERY = "encoder.layer.1.attention.self.query.weight"
DAMAGE: dict[str, Callable[[Path], Any]] = {
    r"the weights lack encoder\.layer\.1\.attention\.self\.query\.weight; ": damaged_weights(lambda t: t.pop(QUERY)),
    r"query\.weight is \[3, 4\], the config asks for \[12, 12\]": damaged_weights(
        lambda tensors: tensors.update({QUERY: np.zeros((3, 4), np.float32)})
    ),
    r"query\.weight is not finite": damaged_weights(lambda tensors: tensors[QUERY].fill(np.nan)),
    r"model\.safetensors: damaged or cut short": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    r"config\.json: field hidden_size": lambda folder: edit(folder / "config.json", hidden_size="12"),
    r"hidden_size = 12 is not an even head width times num_attention_heads = 5": lambda folder: edit(
        folder / "config.json", num_attention_heads=5
    ),
    r"1_Pooling/config\.json: field include_prompt": lambda folder: edit(
        folder / "1_Pooling" / "config.json", include_prompt=0
    ),
    r"its tokenizer cannot be read": lambda folder: (folder / "tokenizer.json").write_text('{"model": null}'),
    r"holds token \d+, outside the vocabulary of 9": lambda folder: (
        edit(folder / "config.json", vocab_size=9),
        damaged_weights(
            lambda tensors: tensors.update(
                {"embeddings.word_embeddings.weight": tensors["embeddings.word_embeddings.weight"][:9].copy()}
            )
        )(folder),
    ),
    r"sentence_bert_config\.json: a text of 2 tokens has no room": lambda folder: edit(
        folder / "sentence_bert_config.json", max_seq_length=2
    ),
    r"default_prompt_name 'ask' is none of the prompts": lambda folder: edit(
        folder / "config_sentence_transformers.json", default_prompt_name="ask"
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_refused_by_name(message: str, folder: Path) -> None:
    DAMAGE[message](folder)
    with pytest.raises(UserError, match=message) as error:
        load_encoder(str(folder)).embed(TEXTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stated", [{}, {"do_lower_case": True}])
def test_a_tokenizer_that_transformers_would_build_otherwise_is_left_to_it(
    folder: Path, stated: dict[str, Any]
) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert_agrees(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", **stated)
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, SentenceEncoder)
    np.testing.assert_allclose(encoder.embed(TEXTS), reference(folder), atol=1e-4)


def random_lora(encoder: FlaxEncoder, *names: str) -> Adapter:
    """An adapter of rank 3 and scale 2 for some projections."""
    spec = encoder.folder.config.transformer.lora_spec(names, 3, 6.0)
    rng = np.random.default_rng(0)
    shapes = spec.shapes()
    return Adapter(
        jax.tree.map(
            lambda shape: jnp.asarray(0.3 * rng.standard_normal(shape, np.float32)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        ),
        spec,
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_saved_adapter_is_the_one_that_peft_reads(folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, FlaxEncoder)
    adapter = random_lora(encoder, "q_proj", "up_proj", "down_proj")
    encoder.save_adapter(tmp_path / "adapter", adapter)
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs[0].auto_model = PeftModel.from_pretrained(theirs[0].auto_model, str(tmp_path / "adapter"))
    embeddings = theirs.encode([prepare(text, "it") for text in TEXTS], show_progress_bar=False)
    expected = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True) * WIDTH**0.5
    z = z_of_rows(encoder.folder.config, encoder.params, jnp.asarray(encoder.token_rows(TEXTS)), adapter)
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(z - encoder.embed(TEXTS)).max() > 0.1


def test_a_saved_adapter_is_read_again_where_projections_share_a_tensor(tmp_path: Path) -> None:
    """q, k and v of GTE, of which k has none here, and both inner projections of its MLP; also in its place."""
    FOLDERS["gte"](tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"))
    assert isinstance(encoder, FlaxEncoder)
    for names in (("q_proj",), ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj")):
        adapter = random_lora(encoder, *names)
        encoder.save_adapter(tmp_path / "adapter", adapter)
        z = z_of_rows(encoder.folder.config, encoder.params, jnp.asarray(encoder.token_rows(TEXTS)), adapter)
        np.testing.assert_allclose(load_encoder(str(tmp_path / "adapter")).embed(TEXTS), z, rtol=1e-3, atol=1e-4)
    assert np.abs(z - encoder.embed(TEXTS)).max() > 0.1


def test_another_alpha_is_the_same_change(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, FlaxEncoder)
    adapter = random_lora(encoder, "q_proj")
    changed = with_alpha(adapter, 1.5)
    assert changed.spec.scale == 0.5
    for name, delta in dense_delta(adapter).items():
        np.testing.assert_allclose(dense_delta(changed)[name], delta, rtol=1e-5)


def test_rows_of_tokens_are_those_of_the_tokenizer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(str(folder))
    assert isinstance(encoder, FlaxEncoder)
    with caplog.at_level(logging.WARNING):
        rows = encoder.token_rows(TEXTS)
    assert "1 of 5 descriptions have more than the 24 tokens" in caplog.text
    assert (rows.dtype, rows.shape) == (np.int32, (5, 24))  # as long as the model reads
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, text in zip(rows, TEXTS, strict=True):
        wanted = tokenizer(prepare(text, "it"), truncation=True, max_length=24)["input_ids"]
        np.testing.assert_array_equal(row, wanted + [-1] * (24 - len(wanted)))
    assert encoder.token_rows(["a b"]).shape == (1, 16)
    np.testing.assert_allclose(
        z_of_rows(encoder.folder.config, encoder.params, jnp.asarray(rows)), encoder.embed(TEXTS), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match="description 1 is empty"):
        encoder.token_rows([" "])
