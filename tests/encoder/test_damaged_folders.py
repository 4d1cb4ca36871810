"""A folder that is no whole sentence-transformers model is refused in one line, whatever the libraries raise on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from t2l_jax.encoder import load_encoder
from t2l_jax.errors import UserError

pytestmark = pytest.mark.slow  # importing sentence-transformers takes seconds
WORDS = {"[UNK]": 0, "say": 1, "red": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that adds up the vectors of known words."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [4, 0, 0, 1]], np.float32)
    folder = tmp_path_factory.mktemp("whole")
    static = StaticEmbedding(tokenizer, embedding_weights=vectors)
    SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "encoder"))


def test_known_words_are_added_up(folder: Path) -> None:
    z = load_encoder(str(folder)).embed(["say red"])
    np.testing.assert_allclose(z, [np.array([5, 2, 3, 5]) * 2 / 63**0.5], rtol=1e-5)


def test_a_text_without_known_words_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"description 2, 'Übersetze!': .*embedding of it is zero"):
        load_encoder(str(folder)).embed(["say red", "Übersetze!"])


def test_weights_that_are_not_finite_are_noticed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: np.full_like(tensor, np.nan) for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"embedding of it is not finite"):
        load_encoder(str(folder)).embed(["say red."])


def change(name: str, **fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return edit


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


DAMAGE = {
    "prompts": change("config_sentence_transformers.json", prompts=1.5),
    "settings": write("config_sentence_transformers.json", "[" * 100_000),
    "no settings": write("config_sentence_transformers.json", "7"),
    "config": write("config.json", "[" * 100_000),
    "config a list": write("config.json", "[]"),
    "map of code": write("config.json", '{"auto_map": 3}'),
    "modules": write("modules.json", "[" * 100_000),
    "modules an object": write("modules.json", "{}"),
    "modules of numbers": write("modules.json", "[1, 2]"),
    "modules without type": write("modules.json", '[{"idx": 0}]'),
    "type a number": write("modules.json", '[{"idx": 0, "name": "0", "path": "", "type": 3}]'),
    "type unknown": write("modules.json", '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.No"}]'),
    "no modules": write("modules.json", "[]"),
    "tokenizer": write("tokenizer.json", '{"model": null}'),
    "weights": write("model.safetensors", "no weights"),
    "digits": write("modules.json", "7" * 5_000),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_refused_in_one_line(folder: Path, name: str) -> None:
    DAMAGE[name](folder)
    with pytest.raises(UserError, match=str(folder)) as error:
        load_encoder(str(folder)).embed(["say red"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("width", [0, 2**63, 1.5, None])
def test_a_width_that_is_none_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, width: object) -> None:
    monkeypatch.setattr(SentenceTransformer, "get_embedding_dimension", lambda _: width)
    with pytest.raises(UserError, match=r"its text encoder says that its embeddings are .* wide"):
        load_encoder(str(folder))


@pytest.mark.parametrize("activation", ["os.system", "torch.hub.load", "builtins.exec"])
def test_an_activation_that_the_library_would_replace_by_another_is_refused(folder: Path, activation: str) -> None:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.append(Dense(4, 4, activation_function=torch.nn.Tanh()))
    model.save(str(folder), create_model_card=False)
    load_encoder(str(folder)).embed(["say red"])
    file = folder / "1_Dense" / "config.json"
    file.write_text(file.read_text().replace("torch.nn.modules.activation.Tanh", activation))
    with pytest.raises(UserError, match=rf"needs Python code of its own \({activation}\)"):
        load_encoder(str(folder))


def test_a_module_outside_the_folder_is_refused(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {**modules[0], "path": "../other"}]))
    with pytest.raises(UserError, match=r"modules\.json: the path '\.\./other' leaves the model's folder"):
        load_encoder(str(folder))
