"""How an answer is scored against the accepted ones: between 0 and 1, the mean over examples is a task's score."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from rouge_score.rouge_scorer import RougeScorer

from t2l_jax.errors import UserError

Metric = Callable[[str, Sequence[str]], float]

# A minus sign after a digit, a letter or a bracket is a subtraction or a dash: "3-2" ends in 2. A comma belongs to the
# number where three digits follow: "1,2,3" ends in 3.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?")


def exact_match(prediction: str, accepted: Sequence[str]) -> float:
    """1 where the prediction is one of the accepted answers, blanks at both ends aside; letter case counts."""
    return float(prediction.strip() in {answer.strip() for answer in accepted})


def numeric_match(prediction: str, accepted: Sequence[str]) -> float:
    """1 where the last number in the prediction equals that in an accepted answer: 1,200 is 1200.0 and $1200."""
    number = last_number(prediction)
    return float(number is not None and number in [last_number(answer) for answer in accepted])


def last_number(text: str) -> Decimal | None:
    """The last number in a text, without thousands commas and dollar signs; None where there is none."""
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(re.sub("[$,]", "", numbers[-1])) if numbers else None


def rouge_l(prediction: str, accepted: Sequence[str]) -> float:
    """The best ROUGE-L F-measure against the accepted answers (Lin, 2004), on stemmed words."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return max(float(scorer.score(answer, prediction)["rougeL"].fmeasure) for answer in accepted)


NUMERIC_MATCH = "numeric_match"
CODE_PASS = "code_pass"  # no comparison of texts: see `sandbox`
METRICS: dict[str, Metric] = {"exact_match": exact_match, NUMERIC_MATCH: numeric_match, "rouge_l": rouge_l}


def find_metric(name: str) -> Metric:
    """The function of that name in METRICS. Raises UserError for another name."""
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}: choose among {', '.join([*METRICS, CODE_PASS])}")
    return METRICS[name]
