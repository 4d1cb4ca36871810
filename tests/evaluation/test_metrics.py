"""Scores of hand-written answers, and ROUGE-L against its definition."""

import pytest

from t2l_jax.errors import UserError
from t2l_jax.evaluation.metrics import METRICS, exact_match, find_metric, numeric_match, rouge_l


@pytest.mark.parametrize(
    ("prediction", "accepted", "score"),
    [
        ("Paris", ["Paris"], 1),
        ("  Paris\n", ["London", "Paris "], 1),
        ("paris", ["Paris"], 0),
        ("Paris.", ["Paris"], 0),
        ("", ["Paris"], 0),
        ("New  York", ["New York"], 0),
    ],
)
def test_exact_match_forgives_blanks_at_the_ends_only(prediction, accepted, score):
    assert exact_match(prediction, accepted) == score


@pytest.mark.parametrize(
    ("prediction", "accepted", "score"),
    [
        ("5 + 7 is 12", ["12"], 1),
        ("The answer is $1,200.00.", ["1200"], 1),
        ("1200", ["He earns $1,200.00"], 1),
        ("-$5", ["-5"], 1),
        ("it is -.5", ["-0.5"], 1),
        ("\N{MINUS SIGN}5", ["-5"], 1),
        ("\N{MINUS SIGN}5", ["5"], 0),
        ("3-2", ["2"], 1),
        ("(1,2,3)", ["3"], 1),
        ("12 or 13", ["12"], 0),
        ("0.1000000000000000055", ["0.1"], 0),
        ("none", ["0"], 0),
        ("none", ["none"], 0),
        ("7", ["8", "7"], 1),
    ],
)
def test_numeric_match_compares_last_numbers_as_decimals(prediction, accepted, score):
    assert numeric_match(prediction, accepted) == score


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # "the cat" and "mat" are common, in order: 3 words, of 6 in the answer and 4 in the prediction.
    precision, recall = 3 / 4, 3 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l("the cat mat slept", ["the cat sat on the mat"]) == pytest.approx(expected)
    assert rouge_l("the cat mat slept", ["no", "the cat sat on the mat"]) == pytest.approx(expected)
    assert rouge_l("Cats!", ["cat"]) == 1
    assert rouge_l("", ["cat"]) == 0


def test_metrics_are_found_by_name():
    assert {name: find_metric(name) for name in METRICS} == METRICS
    with pytest.raises(UserError, match=r"no metric 'bleu'.*exact_match, numeric_match, rouge_l"):
        find_metric("bleu")
