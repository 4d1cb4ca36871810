"""The table of scores that are made up."""

import csv
import io
import json

import numpy as np
import pytest

from t2l_jax.evaluation.bootstrap import interval, over_examples
from t2l_jax.evaluation.report import entries, gather, markdown, picture, write

RNG = np.random.default_rng(0)
SCORES = {
    ("instance", "unseen", task, method): RNG.random((wordings, 4))
    for task in ("one", "two")
    for method, wordings in (("base", 1), ("misaligned", 3), ("aligned", 3))
} | {("instance", "unseen", "two", "oracle"): RNG.random((1, 4))}
LINES = entries(SCORES, {"one": "rouge_l", "two": "label accuracy"})


def find(task, method, minus=""):
    return next(line for line in LINES if (line.task, line.method, line.minus) == (task, method, minus))


def cell(task, method):
    return SCORES["instance", "unseen", task, method]


def test_answers_in_any_order_become_the_same_array():
    place, array = next(item for item in SCORES.items() if item[1].shape == (3, 4))
    answers = list(np.ndenumerate(array))
    found = gather({place: {index: float(score) for index, score in reversed(answers)}})
    np.testing.assert_array_equal(found[place], array)


def test_averages_and_their_intervals_are_over_tasks_of_mean_wordings():
    line = find("", "aligned")
    arrays = [100 * cell(task, "aligned").mean(0) for task in ("one", "two")]
    assert (line.mean, line.low, line.high) == interval(arrays)
    assert (line.mean, line.same_low, line.same_high) == interval(arrays, over_examples)
    one = find("one", "aligned")
    assert (one.mean, one.low, one.high) == interval(arrays[:1], over_examples)
    assert (one.same_low, one.same_high) == (one.low, one.high)
    by_wording = [np.mean([cell(task, "aligned")[w] for task in ("one", "two")]) for w in range(3)]
    assert line.wording_std == pytest.approx(100 * np.std(by_wording))
    assert (line.tasks, line.of, line.examples) == (2, 2, 8)
    oracle = find("", "oracle")
    assert oracle.tasks == 1
    assert oracle.low < oracle.high  # of one task the examples are drawn
    assert find("one", "base").mean == pytest.approx(100 * cell("one", "base").mean())


def test_differences_are_paired_by_example():
    line = find("", "aligned", "misaligned")
    pairs = [100 * (cell(task, "aligned").mean(0) - cell(task, "misaligned").mean(0)) for task in ("one", "two")]
    assert (line.mean, line.low, line.high) == pytest.approx(interval(pairs))
    assert not [entry for entry in LINES if entry.minus == "multitask"]


def test_markdown_shows_what_is_missing():
    text = markdown(LINES, ["a note"])
    head = "base | misaligned adapter | aligned adapter | oracle"
    assert f"| tasks | {head} |" in text
    assert f"| task | {head} |" in text
    row = next(line for line in text.splitlines() if line.startswith("| one (unseen, rouge_l)"))
    assert row.endswith("| - |")
    assert "(1 of 2 tasks) |" in text
    assert "| unseen (2) | aligned adapter - misaligned adapter |" in text
    oracle = find("", "oracle")
    row = next(line for line in text.splitlines() if line.startswith("| new examples of the same unseen |"))
    assert row.endswith(f"| [{oracle.same_low:.1f}, {oracle.same_high:.1f}] |")
    assert text.count("| new examples of the same unseen |") == 2  # the averages and the difference
    assert text.endswith("- a note\n")
    assert "Task by task" not in markdown(LINES, [], single=False)


def test_csv_json_and_picture_hold_the_same_lines(tmp_path):
    write(tmp_path, LINES, ["a note"], {"model": "m"})
    read = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    data = json.loads((tmp_path / "table.json").read_text())
    assert data["entries"] == [vars(line) for line in LINES]
    assert [float(line["mean"]) for line in read] == [line.mean for line in LINES]
    assert data["notes"] == ["a note"]
    assert (tmp_path / "table.png").read_bytes() == picture(LINES)
    assert picture(LINES).startswith(b"\x89PNG")
