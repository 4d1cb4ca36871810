"""How the benchmarks of the original's registry are scored, which its metadata.yaml does not say.

By the name of the data set on the hub: the metric, what kind of task it is, its labels, and for code where in a row the
test is. What metadata.yaml itself says of `metric`, `kind` and `labels` wins.
"""

import ast
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Code(NamedTuple):
    """The test of a code task: Python text that defines `check(function)`, and the function's name."""

    test: str
    entry_point: str


class Benchmark(NamedTuple):
    """What an evaluation must know of a data set's tasks."""

    metric: str = "exact_match"
    kind: str = "generation"
    labels: tuple[str, ...] = ()
    code: Callable[[Row], Code] | None = None


def _humaneval(row: Row) -> Code:
    return Code(row["test"], row["entry_point"])


def _mbpp(row: Row) -> Code:
    """MBPP's assertions call a function by its name: the last that `code` defines and they call."""
    tests = "\n".join(row["test_list"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a string
        defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
    name = [name for name in defined if re.search(rf"\b{name}\(", tests)][-1]
    head = f"def check(_, {name}={name}):"  # a function may itself be named check
    before = row["test_imports"] if "test_imports" in row else [row["test_setup_code"]]  # sanitized, or full
    return Code("\n".join([*before, "", head, *(f"    {line}" for line in tests.splitlines())]), name)


CHOICE = Benchmark(kind="multiple_choice")
BENCHMARKS: dict[str, Benchmark] = {
    "allenai/ai2_arc": CHOICE,
    "allenai/openbookqa": CHOICE,
    "allenai/winogrande": CHOICE,
    "Rowan/hellaswag": CHOICE,
    "ybisk/piqa": CHOICE,
    "google/boolq": Benchmark(kind="classification", labels=("true", "false")),
    "gsm8k": Benchmark("numeric_match", "math"),  # the last number of a worked solution is its result
    "openai/gsm8k": Benchmark("numeric_match", "math"),
    "openai/openai_humaneval": Benchmark("code_pass", "code", code=_humaneval),
    "google-research-datasets/mbpp": Benchmark("code_pass", "code", code=_mbpp),
}
