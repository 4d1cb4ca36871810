"""How the benchmarks of the original's registry are scored, which its metadata.yaml does not say.

By the name of the data set on the hub: the metric, what kind of task it is, its labels, and for code where in a row the
test is. What metadata.yaml itself says of `metric`, `kind` and `labels` wins.
"""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Code(NamedTuple):
    """The test of a code task: Python text that defines `check(function)`, and the function's name."""

    test: str
    entry_point: str


class Scoring(NamedTuple):
    """What an evaluation must know of a data set's tasks."""

    metric: str = "exact_match"
    kind: str = "generation"
    labels: tuple[str, ...] = ()
    code: Callable[[Row], Code] | None = None


def _humaneval(row: Row) -> Code:
    return Code(row["test"], row["entry_point"])


def _mbpp(row: Row) -> Code:
    """MBPP's assertions call the function by its name, which is that of the function of `code` that they call last."""
    tests = "\n".join(row["test_list"])
    defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
    called = [name for name in defined if f"{name}(" in tests]
    lines = [*row.get("test_imports", ()), "", "def check(_):", *(f"    {line}" for line in tests.splitlines())]
    return Code("\n".join(lines), (called or defined)[-1])


CHOICE = Scoring(kind="multiple_choice")
SCORING: dict[str, Scoring] = {
    "allenai/ai2_arc": CHOICE,
    "allenai/openbookqa": CHOICE,
    "allenai/winogrande": CHOICE,
    "Rowan/hellaswag": CHOICE,
    "ybisk/piqa": CHOICE,
    "google/boolq": Scoring(kind="classification", labels=("true", "false")),
    "gsm8k": Scoring("numeric_match", "math"),  # the last number of a worked solution is its result
    "openai/openai_humaneval": Scoring("code_pass", "code", code=_humaneval),
    "google-research-datasets/mbpp": Scoring("code_pass", "code", code=_mbpp),
}
