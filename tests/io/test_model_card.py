"""Cards of hypernetworks: the hub's fields, and figures of an evaluation of that very model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_published import save_published, tiny_config

import t2l_jax
from t2l_jax.errors import UserError
from t2l_jax.evaluation.report import Entry
from t2l_jax.io.model_card import known_facts
from t2l_jax.io.published import PRETRAINED, fingerprint, load_model, model_card, publish

ROOT = Path(t2l_jax.__file__).parents[1]


def report(folder: Path, model: str, metrics=("exact_match", "exact_match"), **changes) -> Path:
    """The folder of a report: two tasks of a split in one mode, by two methods, and their difference."""
    place = Entry("instance", "unseen", "", "", "aligned", "", 62.55, 40.0, 80.0, 50.0, 70.0, 1.0, 2, 2, 10)
    lines = [
        replace(place, **changes),
        replace(place, method="base", mean=1.0),
        replace(place, minus="base", mean=61.5),
        *(replace(place, task=f"t{number}", metric=metric) for number, metric in enumerate(metrics)),
    ]
    folder.mkdir(exist_ok=True)
    settings = {"model": model, "tasks": "my/tasks", "max_tasks": 2}
    data = {"settings": settings, "notes": [], "entries": [vars(line) for line in lines]}
    (folder / "table.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def model(tmp_path):
    return save_published(tmp_path / "model", tiny_config(encoder="hf:org/encoder"))


def own(folder: Path) -> str:
    return fingerprint(*load_model(folder), None, None)


def data_of(folder: Path) -> dict:
    return ModelCard.load(folder / "README.md").data.to_dict()


FIELDS = {
    "base_model": "org/tiny",
    "base_model_relation": "adapter",
    "library_name": "t2l_jax",
    "pipeline_tag": "text-generation",
    "tags": ["text-to-lora", "hypernetwork", "lora", "jax"],
}


def test_a_card_has_the_hubs_fields_and_no_figures_of_its_own(model, tmp_path):
    publish(model, tmp_path / "out")
    assert data_of(tmp_path / "out") == FIELDS
    nameless = ModelCard(model_card(tiny_config(base_name="/models/base\nlicense: mit"), "")).data.to_dict()
    assert nameless == {key: value for key, value in FIELDS.items() if not key.startswith("base_model")}


def test_results_are_those_of_the_report(model, tmp_path):
    publish(model, tmp_path / "out", results=report(tmp_path / "r", own(model)))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    (found,) = card.data.eval_results
    assert (found.dataset_type, found.dataset_name) == ("tasks", "tasks: unseen (2 tasks)")
    assert (found.dataset_config, found.dataset_split, found.metric_type) == ("instance", "unseen", "exact_match")
    assert found.metric_value == pytest.approx(62.55, abs=0.051)
    assert found.metric_name.endswith("[40.0, 80.0]")
    assert data_of(tmp_path / "out").items() >= FIELDS.items()


def test_tasks_of_several_metrics_have_a_score(model, tmp_path):
    publish(model, tmp_path / "out", results=report(tmp_path / "r", own(model), metrics=("exact_match", "rouge")))
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results[0].metric_type == "score"


def test_results_of_another_model_are_refused(model, tmp_path):
    folder = report(tmp_path / "r", own(model))
    with pytest.raises(UserError, match=r"r/table\.json: the evaluation of another model"):
        publish(model, tmp_path / "out", alpha=3.0, results=folder)  # which is another model
    for changes, message in (
        ({"entries": 3}, "field entries"),
        ({"settings": {}}, r"field settings\.model is missing"),
    ):
        data = json.loads((folder / "table.json").read_text())
        (folder / "table.json").write_text(json.dumps({**data, **changes}))
        with pytest.raises(UserError, match=message):
            publish(model, tmp_path / "out", results=folder)
    with pytest.raises(UserError, match=r"table\.json cannot be read"):
        publish(model, tmp_path / "out", results=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_copy_keeps_the_card_and_a_changed_one_only_what_is_still_true(model, tmp_path):
    publish(model, tmp_path / "out", results=report(tmp_path / "r", own(model)))
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: mit\nlanguage: en\n", 1) + "\nTrained on two.\n")
    publish(tmp_path / "out", tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == path.read_text()
    publish(tmp_path / "out", tmp_path / "other", alpha=3.0)
    assert data_of(tmp_path / "other") == {**FIELDS, "license": "mit", "language": "en"}
    assert "Trained on two." in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize(
    "card", ["", "no yaml", "---\n[1]\n---\n", "---\na: {\n---\n", "---\nlicense: [mit]\n---\n", "---\nlicense: mit\n"]
)
def test_a_card_without_usable_yaml_says_nothing(card):
    assert known_facts(card) == {}


def test_the_packaged_card_has_the_figures_of_its_table():
    card = ModelCard.load(PRETRAINED / "smollm2-family" / "README.md").data
    assert card.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (card.license, card.library_name) == ("apache-2.0", "t2l_jax")
    table = json.loads((ROOT / "experiments/results/family_both/table.json").read_text())["entries"]
    wanted = {
        (line["mode"], line["split"]): line["mean"]
        for line in table
        if line["method"] == "aligned" and not line["task"] and not line["minus"]
    }
    assert {(r.dataset_config, r.dataset_split): r.metric_value for r in card.eval_results} == wanted
