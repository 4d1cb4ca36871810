import json
from pathlib import Path

import pytest

from t2l_jax.data.tasks import MAX_TRAIN_DESCRIPTIONS, Example, Task, load_task, load_tasks
from t2l_jax.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tasks"
YAML = "name: {name}\nmetric: rouge_l\nuse: test\ndescriptions:\n- Repeat the word.\n- 'Say: it again.'\n"
LINE = '{"input": "a", "output": "b", "outputs": ["b", "B"]}\n'


def write_task(folder, name="echo", yaml=None, train=LINE, test=LINE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(yaml if yaml is not None else YAML.format(name=name), encoding="utf-8")
    (folder / "train.jsonl").write_text(train, encoding="utf-8")
    (folder / "test.jsonl").write_text(test, encoding="utf-8")
    return folder


def test_a_task_folder(tmp_path):
    write_task(tmp_path, train=LINE + "\n" + '{"input": "grün", "output": "c"}\n')
    (task,) = load_tasks(tmp_path)
    assert task == Task(
        name="echo",
        descriptions=("Repeat the word.", "Say: it again."),
        train=(Example("a", "b", ("b", "B")), Example("grün", "c", ("c",))),
        test=(Example("a", "b", ("b", "B")),),
        metric="rouge_l",
        unseen_descriptions=(),
        use="test",
    )


def test_defaults(tmp_path):
    task = load_task(write_task(tmp_path, yaml="name: echo\ndescriptions: [Repeat the word.]\n", train=""))
    assert (task.metric, task.use, task.train) == ("exact_match", "train", ())


def test_a_definition(tmp_path):
    yaml = "name: echo\ndefinition: Say it again.\ndescriptions: [Repeat the word.]\n"
    assert load_task(write_task(tmp_path, yaml=yaml)).definition == "Say it again."


def test_a_folder_of_tasks_in_order(tmp_path):
    for name in ("b", "a", "c"):
        write_task(tmp_path / name, name)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "INDEX.csv").write_text("name\n")
    assert [task.name for task in load_tasks(str(tmp_path))] == ["a", "b", "c"]


def test_descriptions_past_the_limit_are_unseen_wordings(tmp_path):
    descriptions = [f"Wording {i}." for i in range(200)]
    task = load_task(write_task(tmp_path, yaml=json.dumps({"name": "echo", "descriptions": descriptions})))
    assert task.descriptions == tuple(descriptions[:MAX_TRAIN_DESCRIPTIONS])
    assert task.unseen_descriptions == tuple(descriptions[128:])


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("descriptions: [x]", "field name is missing"),
        ("name: 7\ndescriptions: [x]", "field name: must be a valid string, got 7"),
        ("name: ../x\ndescriptions: [x]", "path separator"),
        ("name: ..\ndescriptions: [x]", "starts with a dot"),
        ("name: 'a\\b'\ndescriptions: [x]", "path separator"),
        ("name: x", "field descriptions is missing"),
        ("name: x\ndescriptions: [x]\ndefinition: ' '", "field definition: must be a non-empty text"),
        ("name: x\ndescriptions: []", "field descriptions: .* at least 1 item"),
        ("name: x\ndescriptions: Repeat it.", "field descriptions: must be a valid tuple, got 'Repeat it.'"),
        ("name: x\ndescriptions: [good, '  ']", r"field descriptions.1: must be a non-empty text"),
        ("name: x\ndescriptions: [x]\nmetric: [1]", r"field metric: must be a valid string, got \[1\]"),
        ("name: x\ndescriptions: [x]\nuse: both", "field use: must be 'train' or 'test', got 'both'"),
        ("- name", "expected fields such as"),
        ("", "expected fields such as"),
        ("name: [x", "not YAML: .*line 1"),
        ("name: !!python/object/apply:os.system [ls]", "not YAML without tags"),
    ],
)
def test_a_bad_task_yaml_is_named(tmp_path, yaml, message):
    write_task(tmp_path / "t", yaml=yaml)
    with pytest.raises(UserError, match=rf"task\.yaml: .*{message}"):
        load_tasks(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "a", "output": "b"', "not JSON"),
        ('["a", "b"]', "expected a JSON object"),
        ('{"output": "b"}', "field input is missing"),
        ('{"input": "a"}', "field output is missing"),
        ('{"input": "a", "output": ""}', "field output: must be a non-empty text"),
        ('{"input": "a", "output": 3}', "field output: must be a valid string, got 3"),
        ('{"input": "a", "output": "b", "outputs": []}', "field outputs: .* at least 1 item"),
        ('{"input": "a", "output": "b", "outputs": ["b", null]}', "field outputs.1: must be a valid string, got None"),
    ],
)
@pytest.mark.parametrize("file", ["train", "test"])
def test_a_bad_line_is_named(tmp_path, file, line, message):
    write_task(tmp_path, **{file: LINE + "\n" + line + "\n"})
    with pytest.raises(UserError, match=rf"{file}\.jsonl, line 3: .*{message}"):
        load_tasks(tmp_path)


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl"])
def test_a_missing_file_is_named(tmp_path, file):
    (write_task(tmp_path) / file).unlink()
    with pytest.raises(UserError, match=rf"{file} cannot be read: No such file"):
        load_tasks(tmp_path)


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(UserError, match=r"neither a task\.yaml nor folders of tasks"):
        load_tasks(tmp_path)
    (tmp_path / "stray").mkdir()
    with pytest.raises(UserError, match=r"stray/task\.yaml cannot be read"):
        load_tasks(tmp_path)
    with pytest.raises(UserError, match="absent cannot be read: No such file"):
        load_tasks(tmp_path / "absent")


def test_a_name_given_twice(tmp_path):
    write_task(tmp_path / "one", "echo")
    write_task(tmp_path / "two", "Echo")
    with pytest.raises(UserError, match="two tasks have the name 'Echo': rename"):
        load_tasks(tmp_path)


def test_damaged_tasks_are_left_out_with_a_warning_that_names_file_and_line(tmp_path):
    write_task(tmp_path / "good", "good")
    write_task(tmp_path / "cut", "cut", train=LINE + LINE[:20])
    write_task(tmp_path / "vague", "vague", yaml="name: vague")
    message = r"2 of 3 tasks are damaged and left out, 1 are left: .*cut/train\.jsonl, line 2: not JSON.*; .*vague/task"
    with pytest.warns(UserWarning, match=message):
        assert [task.name for task in load_tasks(tmp_path)] == ["good"]


def is_whole(folder):
    """Whether every line of both files is JSON, found without our reader."""
    try:
        for file in ("train.jsonl", "test.jsonl"):
            for line in (folder / file).read_bytes().split(b"\n"):
                json.loads(line or b"{}")
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tasks are not here")
def test_shared_tasks():
    """All 217 load, but for a few whose lines are damaged in that pack: these are refused by file and line."""
    folders = sorted(SHARED.iterdir())
    damaged = [folder for folder in folders if not is_whole(folder)]
    assert len(folders) == 217
    assert len(damaged) <= 4
    for folder in damaged:
        with pytest.raises(UserError, match=rf"{folder.name}/t\w+\.jsonl, line \d+: not JSON"):
            load_task(folder)
    tasks = [load_task(folder) for folder in folders if folder not in damaged]
    assert [task.name for task in tasks] == [folder.name for folder in folders if folder not in damaged]
    assert {task.metric for task in tasks} == {"exact_match", "rouge_l", "numeric_match", "code_pass"}
    assert max(len(task.train) for task in tasks) == 1000
    assert next(task for task in tasks if task.name == "gsm8k").use == "test"
