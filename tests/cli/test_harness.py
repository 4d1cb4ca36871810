"""`t2l lm-eval`: the harness's scores of each task with its adapter, or one line says what is wrong."""

import json
from pathlib import Path

import pytest
from command_line import MODEL, assert_refused, run

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: 0
doc_to_choice: [red, blue green]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def yaml(place: Path) -> tuple[str, ...]:
    """A folder of two tasks, as options."""
    data = place / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in ("red", "blue green", "green")))
    (place / "yaml").mkdir()
    for name in ("mine", "yours"):
        (place / "yaml" / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return ("--include-path", "yaml")


@pytest.mark.slow
def test_tasks_are_scored(capsys, place, yaml):
    status, out, _ = run(capsys, "lm-eval", "--tasks", "mine", "yours", *yaml, *MODEL, "--out", "s.json")
    assert status == 0
    assert "|mine " in out
    found = json.loads(Path("s.json").read_text())
    assert found["n-samples"]["mine"] == {"original": 3, "effective": 3}
    assert found["results"]["mine"]["acc,none"] == found["results"]["yours"]["acc,none"]


@pytest.mark.slow
def test_tasks_have_adapters_of_their_own(capsys, place, yaml):
    lines = [{"name": name, "description": f"Say {name}."} for name in ("mine", "yours")]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(capsys, "lm-eval", "--from", "t.jsonl", *yaml, *MODEL, "--out", "both.json", "--limit", "2")[0] == 0
    description = ("--description", "Say mine.", "--chat-template")
    assert run(capsys, "lm-eval", "--tasks", "mine", *description, *yaml, *MODEL, "--out", "one.json")[0] == 0
    both, one = (json.loads(Path(name).read_text()) for name in ("both.json", "one.json"))
    assert set(both["results"]) == {"mine", "yours"}
    assert both["n-samples"]["mine"]["effective"] == 2
    assert set(one["results"]) == {"mine"}


@pytest.mark.slow
def test_an_adapter_for_no_task_is_refused(capsys, place, yaml):
    lines = [{"name": name, "description": f"Say {name}."} for name in ("mine", "your")]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, err = run(capsys, "lm-eval", "--from", "t.jsonl", "--tasks", "mine", "yours", *yaml, *MODEL)
    assert (status, out) == (2, "")
    assert (
        "no task that was run is named 'your', nor begins so: the harness's names of single tasks are mine, yours"
        in err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --tasks, or --from tasks.jsonl"),
        (("--tasks", "x", "--description", "a", "--adapter", "b"), "give one of --description, --adapter and --from"),
        (("--tasks", "x", "--limit", "0"), "--limit is 0: give a positive number"),
        (("--tasks", "x", "--out", "models"), "models exists already"),
        (("--tasks", "no_such_task"), "the harness has no task 'no_such_task'"),
        (("--tasks", "x", "--adapter", "missing"), "missing"),
        (("--from", "missing.jsonl"), "missing.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_scored_is_refused(capsys, place, arguments, message):
    assert_refused(capsys, message, "lm-eval", *arguments, *MODEL)
