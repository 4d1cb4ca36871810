"""The registry's benchmarks, from rows as the hub has them to scores: the right answer is right, a wrong one wrong."""

import json

import pytest

from t2l_jax.data import hub
from t2l_jax.data.benchmarks import BENCHMARKS
from t2l_jax.evaluation import sandbox
from t2l_jax.evaluation.choices import choices
from t2l_jax.evaluation.metrics import CODE_PASS, find_metric

LETTERS = "{question}\n\n{choices[label][0]}: {choices[text][0]}\n{choices[label][1]}: {choices[text][1]}\n\nWhich?"
ROWS = {
    "allenai/ai2_arc": (
        {"question": "Wet?", "choices": {"label": ["A", "B"], "text": ["ice", "rain"]}, "answerKey": "B"},
        {"user_prompt_template": LETTERS, "response_field": "answerKey"},
        ("A", "B"),
    ),
    "allenai/openbookqa": (
        {"question": "Wet?", "choices": {"label": ["1", "2"], "text": ["ice", "rain"]}, "answerKey": "2"},
        {"user_prompt_template": LETTERS, "response_field": "answerKey"},
        ("1", "2"),
    ),
    "Rowan/hellaswag": (
        {"ctx": "He", "endings": ["runs: fast", "is"], "label": "1"},
        {"user_prompt_template": "{ctx}\n\n0: {endings[0]}\n1: {endings[1]}\n\nWhich?", "response_field": "label"},
        ("0", "1"),
    ),
    "ybisk/piqa": (
        {"goal": "Dry it.", "sol1": "sun", "sol2": "rain", "label": 0},
        {"user_prompt_template": "{goal}\n\n0: {sol1}\n1: {sol2}", "response_field": "label"},
        ("0", "1"),
    ),
    "allenai/winogrande": (
        {"sentence": "The _ is wet.", "option1": "sun", "option2": "rain", "answer": "2"},
        {
            "user_prompt_template": "{sentence}\n\nWhich is correct?\n\nOption 1: {option1}\nOption 2: {option2}",
            "response_field": "answer",
        },
        ("1", "2"),
    ),
    "google/boolq": (
        {"passage": "Rain is wet.", "question": "is rain wet", "answer": True},
        {"user_prompt_template": "{passage}\n\nQuestion: {question}?", "response_field": "answer"},
        ("true", "false"),
    ),
}
FENCED = {"assistant_prefill": "```python\n", "assistant_postfill": "\n```"}


def load(tmp_path, monkeypatch, path, rows, fields):
    """The task of a registry that names a data set of the hub, which holds these rows."""
    data = hub.datasets.Dataset.from_list(rows)
    monkeypatch.setattr(hub, "load_rows", lambda options, where: data)
    whole = {"descriptions": ["Do it."], "ds_kwargs": {"path": path, "split": "train"}, **fields}
    file = tmp_path / "task" / "metadata.yaml"
    file.parent.mkdir()
    file.write_text(json.dumps(whole))
    return hub.load_hub_task(file)


@pytest.mark.parametrize("path", ROWS)
def test_options_are_chosen_among(tmp_path, monkeypatch, path):
    row, fields, options = ROWS[path]
    task = load(tmp_path, monkeypatch, path, [row], fields)
    (example,) = task.train
    assert choices(task, example) == options
    assert example.output in options


@pytest.mark.parametrize("path", ["gsm8k", "openai/gsm8k"])
def test_of_a_worked_solution_the_last_number_counts(tmp_path, monkeypatch, path):
    fields = {"user_prompt_template": "{question}", "response_field": "answer", "assistant_prefill": "Step by step. "}
    row = {"question": "How many?", "answer": "4 and 1,200 make <<4+1200=1204>>1,204.\n#### 1,204"}
    task = load(tmp_path, monkeypatch, path, [row], fields)
    score = find_metric(task.metric)
    assert (score("So it is 1204.", task.train[0].accepted), score("So it is 1203.", task.train[0].accepted)) == (1, 0)


CODE = {
    "openai/openai_humaneval": (
        {
            "prompt": 'import math\n\n\ndef root(n):\n    """Rounded down."""\n',
            "canonical_solution": "    return math.isqrt(n)\n",
            "test": "def check(candidate):\n    assert candidate(10) == 3\n",
            "entry_point": "root",
        },
        {
            "user_prompt_template": "Write a solution to the following problem:\n```python\n{prompt}\n```",
            "response_field": "canonical_solution",
        },
        ("isqrt(n)", "isqrt(n) + 1"),
    ),
    "google-research-datasets/mbpp": (
        {
            "prompt": "Write a function to find the root.",
            "code": "import math\ndef half(n):\n    return n\ndef root(n):\n    return math.isqrt(half(n))",
            "test_imports": ["import math"],
            "test_list": ["assert set([root(10)]) == {3}", "assert root(16) == math.sqrt(16)"],
        },
        {
            "user_prompt_template": "Solve it.\n\n{prompt}\n\nIt should satisfy:\n```python\n{assertions}\n```",
            "response_field": "code",
        },
        ("isqrt(half(n))", "isqrt(half(n)) + 1"),
    ),
}


@pytest.mark.parametrize("path", CODE)
def test_programs_are_run(tmp_path, monkeypatch, path):
    row, fields, (right, wrong) = CODE[path]
    task = load(tmp_path, monkeypatch, path, [row], {**fields, **FENCED})
    (example,) = task.train
    assert (task.metric, task.kind, example.entry_point) == (CODE_PASS, "code", "root")
    answers = (example.output, example.output.replace(right, wrong))
    programs = [sandbox.program(example.input, answer, example.test, example.entry_point) for answer in answers]
    assert [sandbox.passes(text) for text in programs] == [True, False]


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def check(n):\n    return n", "assert check(3) == 3"),
        ("def add(a, b):\n    return d(a) + b\ndef d(a):\n    return a", "assert add(1, 2) == 3"),
        ('def add(a, b):\n    """\\d"""\n    return a + b', "assert add(1, 2) == 3"),
    ],
)
def test_the_function_that_is_tested_is_found(tmp_path, monkeypatch, code, test):
    row, fields, _ = CODE["google-research-datasets/mbpp"]
    row = {**row, "code": code, "test_list": [test], "test_imports": []}
    (example,) = load(tmp_path, monkeypatch, "google-research-datasets/mbpp", [row], {**fields, **FENCED}).train
    wrong = f"def {example.entry_point}(*_):\n    return -1"
    programs = [sandbox.program(example.input, a, example.test, example.entry_point) for a in (example.output, wrong)]
    assert [sandbox.passes(text) for text in programs] == [True, False]


def test_mbpp_in_full_has_its_set_up_in_another_column(tmp_path, monkeypatch):
    row, fields, (right, wrong) = CODE["google-research-datasets/mbpp"]
    full = {name: value for name, value in row.items() if name != "test_imports"} | {"test_setup_code": "import math"}
    (example,) = load(tmp_path, monkeypatch, "google-research-datasets/mbpp", [full], {**fields, **FENCED}).train
    answers = (example.output, example.output.replace(right, wrong))
    programs = [sandbox.program(example.input, answer, example.test, example.entry_point) for answer in answers]
    assert [sandbox.passes(text) for text in programs] == [True, False]


def test_a_row_whose_test_names_no_function_is_left_out(tmp_path, monkeypatch):
    row, fields, _ = CODE["google-research-datasets/mbpp"]
    rows = [row, {**row, "code": "x = 1"}, {**row, "test_imports": None}]
    with pytest.warns(UserWarning, match="2 of 3 rows are incomplete"):
        task = load(tmp_path, monkeypatch, "google-research-datasets/mbpp", rows, fields)
    assert len(task.train) == 1


def test_metadata_wins(tmp_path, monkeypatch):
    row, fields, _ = ROWS["google/boolq"]
    task = load(tmp_path, monkeypatch, "google/boolq", [row], {**fields, "metric": "rouge_l", "labels": ["true", "no"]})
    assert (task.metric, task.kind, task.labels) == ("rouge_l", "classification", ("true", "no"))
    assert set(BENCHMARKS) == {*ROWS, *CODE, "gsm8k", "openai/gsm8k"}
