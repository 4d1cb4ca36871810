"""The folder of an evaluation: records come back as they were written, and nothing else comes back."""

import json

import pytest

from t2l_jax.errors import UserError
from t2l_jax.evaluation import store

RECORD = {"split": "train", "task": "a", "prediction": "b", "score": 0.5, "key": "k"}


def write(folder, *lines, end="\n"):
    (folder / store.PREDICTIONS_FILE).write_text("\n".join(lines) + end)


def test_records_come_back_without_a_half_line(tmp_path):
    assert store.read_predictions(tmp_path) == {}
    store.append(tmp_path, [RECORD, {**RECORD, "key": "other", "score": 1}])
    with (tmp_path / store.PREDICTIONS_FILE).open("a") as file:
        file.write('{"key": "cut", "sco')
    assert store.read_predictions(tmp_path) == {"k": RECORD, "other": {**RECORD, "key": "other", "score": 1}}
    assert (tmp_path / store.PREDICTIONS_FILE).read_text().endswith("sco")  # reading changes nothing
    (tmp_path / store.SETTINGS_FILE).write_text("{}")
    store.claim(tmp_path, {})
    store.append(tmp_path, [{**RECORD, "key": "new"}])
    assert list(store.read_predictions(tmp_path)) == ["k", "other", "new"]


@pytest.mark.parametrize("score", ["{}", "NaN", "1e18", "-0.1", "1.5", '"1"', "null", "true", "[1]", "1" + "0" * 400])
def test_a_score_that_no_metric_gives_is_refused_by_line(tmp_path, score):
    write(tmp_path, json.dumps(RECORD), f'{{"key": "x", "score": {score}}}')
    with pytest.raises(UserError, match=r"predictions\.jsonl, line 2: field score: .* delete the line"):
        store.read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key": "x"}', "field score is missing"),
        ('{"score": 1.0}', "field key is missing"),
        ('{"key": 7, "score": 1.0}', "field key: must be a valid string, got 7"),
        ("[]", "expected a JSON object"),
        ("{oops", "not JSON"),
    ],
)
def test_a_line_that_is_no_record_is_refused_by_its_number(tmp_path, line, message):
    write(tmp_path, line)
    with pytest.raises(UserError, match=rf"predictions\.jsonl, line 1: {message}"):
        store.read_predictions(tmp_path)
