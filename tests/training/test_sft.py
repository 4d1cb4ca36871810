"""What a recipe of supervised fine-tuning makes of its base model: the chat template of its prompts."""

from dataclasses import replace

import pytest
from tiny_recipe import make_recipe

from t2l_jax.data.prompts import PromptConfig
from t2l_jax.encoder import load_encoder
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve
from t2l_jax.io.sakana_chat import template_for
from t2l_jax.training.sft import prepare_sft
from t2l_jax.training.trainees import TRAINEES


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


def prepare(recipe):
    return prepare_sft(recipe, TRAINEES[recipe.trainee], load_encoder(recipe.encoder))


def test_the_originals_template_is_used_and_published(recipe):
    asked = replace(recipe, base_name="google/gemma-2-2b-it", prompts=PromptConfig(template="original"))
    prepared, usual = prepare(asked), prepare(replace(asked, prompts=PromptConfig()))
    assert (usual.chat_template, prepared.chat_template) == (None, template_for("google/gemma-2-2b-it"))
    texts = []
    for one in (usual, prepared):
        batch, tokenizer = one.batches.draw(0), load_tokenizer(resolve(recipe.base), one.chat_template)
        texts.append(tokenizer.decode(batch.tokens[0, 0][batch.segments[0, 0] > 0]))
    assert texts[0] != texts[1]


def test_the_original_has_templates_for_the_papers_models_alone(recipe):
    with pytest.raises(UserError, match=r"prompts\.template: the original has none for org/tiny: known are mistral"):
        prepare(replace(recipe, prompts=PromptConfig(template="original")))
