"""The registry of hub tasks, against local copies of data sets in the hub's format."""

import pytest
from registry import rows_of, write

from t2l_jax.data.hub import load_hub_task, load_registry
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import Example
from t2l_jax.errors import UserError

ARC = "Choose.\n\n{question}\n\n{choices[label][0]}: {choices[text][0]}\n{choices[label][1]}: {choices[text][1]}"
SUPER_NI = (
    "Definition: Name the colour.\nOnly one word.\n\nPositive Example 1 -\nInput: a leaf\nOutput: green\n\n"
    "Now complete the following example -\nInput: {}\nOutput:"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("parquet", [False, True])
def test_a_task(tmp_path, parquet):
    path = write(tmp_path / "shout", rows_of(*(f"q{n}" for n in range(20))), parquet)
    task = load_hub_task(path)
    assert (task.name, task.metric, task.use) == ("shout", "exact_match", "test")
    assert (len(task.descriptions), len(task.unseen_descriptions)) == (128, 2)
    assert task.train == tuple(Example(f"q{n}", f"Q{n}", (f"Q{n}",), prompt=f"q{n}") for n in range(18))
    assert [example.input for example in task.test] == ["q18", "q19"]


def test_a_registry_is_a_source_of_tasks(tmp_path):
    write(tmp_path / "b", rows_of("x"), t2l_split="train")
    write(tmp_path / "a", rows_of("x"), t2l_split="eval", metric="rouge_l")
    assert [(task.name, task.metric) for task in load_registry(tmp_path)] == [("a", "rouge_l"), ("b", "exact_match")]
    splits = read_tasks(str(tmp_path))
    assert {name: [task.name for task in some] for name, some in splits.items()} == {
        "train": ["b"],
        "unseen tasks": ["a"],
    }


def hidden_alone(folder):
    write(folder / "hidden", rows_of("x"), t2l_split="unlisted")
    return folder


def test_what_cannot_be_loaded_is_left_out_and_named_and_what_is_unlisted_is_left_out(tmp_path):
    write(tmp_path / "good", rows_of("x"))
    write(tmp_path / "hidden", rows_of("x"), t2l_split="unlisted")
    write(tmp_path / "torn", rows_of("x"), response_field="nothing")
    with pytest.warns(UserWarning, match=r"1 of 2 tasks are damaged .* 1 are left: .*torn.*no column 'nothing'"):
        assert [task.name for task in load_registry(tmp_path)] == ["good"]
    with pytest.raises(UserError, match="all its tasks are unlisted"):
        load_registry(hidden_alone(tmp_path / "alone"))
    (tmp_path / "good" / "metadata.yaml").write_text("- no\n- fields\n")
    with pytest.raises(UserError, match=r"good.metadata\.yaml: expected fields"):
        load_registry(tmp_path)


def test_items_of_columns_and_rows_with_too_few(tmp_path):
    rows = [
        {"question": "Which?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answer": "B"},
        {"question": "What?", "choices": {"label": ["A"], "text": ["x"]}, "answer": "A"},
    ]
    with pytest.warns(UserWarning, match="1 of 2 rows are incomplete and left out"):
        task = load_hub_task(write(tmp_path / "arc", rows, user_prompt_template=ARC))
    text = "Choose.\n\nWhich?\n\nA: x\nB: y"
    assert task.train == (Example(text, "B", ("B",), prompt=text),)


def test_rows_with_nothing_in_a_column_of_the_template(tmp_path):
    rows = [{"context": "c", "question": "q", "answer": "a"}, {"context": None, "question": "q", "answer": "a"}]
    with pytest.warns(UserWarning, match="1 of 2 rows are incomplete and left out"):
        task = load_hub_task(write(tmp_path / "a", rows, user_prompt_template="{context}: {question}"))
    assert [example.input for example in task.train] == ["c: q"]
    with pytest.raises(UserError, match="a column cannot be indexed as the template does"):
        load_hub_task(write(tmp_path / "b", rows, user_prompt_template="{question[text]}"))


def test_lots_of_loras(tmp_path):
    """The instance is cut out of the prompt; the definition stands in the prompt that the template writes."""
    rows = [{"input": SUPER_NI.format("a tomato\n\nripe"), "output": ["red", "Red"], "id": "1"}]
    task = load_hub_task(write(tmp_path / "lol", rows, user_prompt_template="{task_def}\n\n{problem}"))
    definition = "Name the colour.\nOnly one word. Please complete the task without any explanation."
    assert task.definition == definition
    whole = f"{definition}\n\na tomato\n\nripe"
    assert task.train == (Example("a tomato\n\nripe", "red", ("red", "Red"), prompt=whole),)


@pytest.mark.parametrize("after", ["\n\nNegative Example 1 -\nInput: x\nOutput: y\n", "\n"])
def test_a_definition_ends_where_examples_begin(tmp_path, after):
    text = f"Definition: Name it.\n\nIn a word.{after}\nNow complete the following example -\nInput: a\nOutput:"
    rows = [{"input": text, "output": ["b"]}]
    task = load_hub_task(write(tmp_path / "lol", rows, user_prompt_template="{task_def}\n\n{problem}"))
    assert task.definition == "Name it.\n\nIn a word. Please complete the task without any explanation."


def test_a_template_that_names_a_definition_where_there_is_none_has_no_form_with_it(tmp_path):
    path = write(tmp_path / "bare", rows_of("x"), user_prompt_template="{task_def}\n\n{question}")
    task = load_hub_task(path)
    assert (task.definition, task.train[0].input, task.train[0].prompt) == ("", "x", "")


def test_answers_of_other_types_and_what_stands_around_them(tmp_path):
    rows = [{"question": "Is it?", "answer": True, "label": 3, "test_list": ["assert f()", "assert g()"]}]
    path = write(tmp_path / "bool", rows, user_prompt_template="{question}\n{assertions}")
    (example,) = load_hub_task(path).train
    assert (example.input, example.output) == ("Is it?\nassert f()\nassert g()", "true")
    path = write(tmp_path / "int", rows, response_field="label", assistant_prefill="<", assistant_postfill=">")
    assert load_hub_task(path).train[0].output == "<3>"
    rows = [{"question": "Who?", "answer": {"text": ["x"], "start": [1]}}]
    with pytest.raises(UserError, match="response_field: the column answer holds dicts, not text"):
        load_hub_task(write(tmp_path / "dict", rows))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"descriptions": []}, "field descriptions: "),
        ({"response_field": None}, "field response_field: must be a valid string, got None"),
        ({"system_message": "Hi."}, "`system_message` is not supported"),
        ({"user_prompt_template": "{question.__class__}"}, "must be a column"),
        ({"user_prompt_template": "{question!r}"}, "must be a column"),
        ({"user_prompt_template": "{question"}, "user_prompt_template: expected"),
        ({"user_prompt_template": "x^{2} = {question}"}, r"\{2\} must be a column, .* write \{\{ for a brace"),
        ({"user_prompt_template": "{question[]}"}, "must be a column"),
        ({"user_prompt_template": "{question[" + "9" * 20 + "]}"}, "must be a column"),
        ({"user_prompt_template": "{problem}"}, "no column 'problem', only answer, question"),
        ({"ds_kwargs": "data"}, "field ds_kwargs: must be .*, got 'data'"),
        (
            {"ds_kwargs": {"path": "data", "trust_remote_code": True}},
            "field ds_kwargs.trust_remote_code is not known",
        ),
        ({"ds_kwargs": {"path": "data"}}, "ds_kwargs names no split: choose among train"),
        (
            {"ds_kwargs": {"path": "data", "split": "dev"}},
            "the data set .*data cannot be loaded .*look at ds_kwargs|dev",
        ),
    ],
)
def test_a_bad_field_is_named(tmp_path, fields, message):
    path = write(tmp_path / "bad", rows_of("x"), **fields)
    with pytest.raises(UserError, match=rf"bad/metadata\.yaml: .*({message})"):
        load_hub_task(path)
