"""A whole evaluation of a tiny model: its files, going on, batch sizes, columns, and what is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_published import NET, SPEC, HashEncoder, reading, save_base, save_published, tiny_config

from t2l_jax import model as model_module
from t2l_jax import save_peft
from t2l_jax.data.tasks import Example, Task
from t2l_jax.errors import UserError
from t2l_jax.evaluation import engine, evaluate, sandbox, weights
from t2l_jax.evaluation.plan import METHODS, EvaluationConfig, Row
from t2l_jax.evaluation.weights import Baselines, find_baselines
from t2l_jax.hypernet import Condition, TaskEncoderConfig
from t2l_jax.io.files import locked
from t2l_jax.lora import dense_delta, init_adapter, merge
from t2l_jax.model import Model, load

INPUTS = ("red blue green", "one two three four five", "black white")


def make_task(number, **changes):
    examples = tuple(Example(text, "one " * number, ("one", "two")) for text in INPUTS)
    texts = (f"Say train {number}.",)
    unseen = (f"Say {number} first.", f"Say {number} last.")
    return replace(Task(f"task{number}", texts, examples, examples, "rouge_l", unseen), **changes)


CLASSES = make_task(4, kind="classification", labels=("one", "two three"), metric="exact_match")
SPLITS = {
    "train": [make_task(1), make_task(2), make_task(3)],
    "unseen": [replace(CLASSES, test=tuple(Example(text, "one", ("one",)) for text in INPUTS)), make_task(5)],
}


@pytest.fixture(scope="module", autouse=True)
def _settings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2L_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(model_module, "load_encoder", lambda source, **_: HashEncoder())
        patch.setattr(evaluate, "read_tasks", lambda source: SPLITS)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    return save_published(path / "model", tiny_config(save_base(path / "base")))


@pytest.fixture
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def given(folder, tmp_path_factory):
    """A shared LoRA, oracles of two training tasks and an unseen one, a hypernetwork that knows one training task."""
    place = tmp_path_factory.mktemp("given")
    places = {name: place / "peft" / name for name in ("shared", "task1", "task2", "task4")}
    for seed, path in enumerate(places.values()):
        save_peft(some_adapter(seed), path)
    multitask = places.pop("shared")
    return Baselines(multitask, places, one_hot(place / "run", load(folder), ["task1", "gone"]))


EVERYTHING = EvaluationConfig(examples=3, wordings=3, prompt="both")


@pytest.fixture(scope="module")
def whole(folder, given, tmp_path_factory):
    """The folder of one evaluation with every column, which most tests look at: a batch of each shape is a program."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, evaluate.evaluate(load(folder), EVERYTHING, out, given)


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it to damage or to go on with."""
    return Path(shutil.copytree(whole[0], tmp_path / "out"))


def one_hot(folder, model, tasks):
    """The run folder of a hypernetwork that reads the identities of these tasks."""
    net = replace(NET, task=TaskEncoderConfig(dim=len(tasks)))
    save_published(folder / "model", replace(model.config, hypernet=net, encoder=None, reads="identity"))
    (folder / "tasks.json").write_text(json.dumps({"tasks": tasks}))
    return find_baselines(None, None, folder).one_hot


def some_adapter(seed):
    key = jax.random.key(seed)
    return jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(key, leaf.shape), init_adapter(key, SPEC))


def lines(path):
    return [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


def by_key(path):
    return {line["key"]: line for line in lines(path)}


def test_every_column_file_and_note(whole):
    out, text = whole
    for method in METHODS.values():
        assert (method.title in text) != method.defined  # that column comes with --prompt definition
    assert "1 of 3 tasks have no oracle" in text
    assert "2 of 3 tasks have no one-hot hypernetwork" in text
    assert "(2 of 3 tasks)" in text
    assert {path.name for path in out.iterdir()} == {
        *("settings.json", "environment.json", "predictions.jsonl", "table.md", "table.csv", "table.json", "table.png")
    }
    found = lines(out)
    assert len({line["key"] for line in found}) == len(found)
    count = {(m, mode): 0 for m in METHODS for mode in ("", "instance", "instruction")}
    for line in found:
        count[line["method"], line["mode"]] += 1
    rows = 5 * 3  # tasks x examples; every task has two unseen wordings
    assert [count["base", ""], count["description", ""], count["few-shot", ""]] == [rows, 2 * rows, 2 * rows]
    assert [count["multitask", "instance"], count["multitask", "instruction"]] == [rows, 2 * rows]
    assert [count["aligned", "instance"], count["misaligned", "instruction"]] == [2 * rows, 2 * rows]
    assert [count["oracle", "instance"], count["oracle", "instruction"]] == [9, 18]
    assert [count["one-hot", "instance"], count["one-hot", "instruction"]] == [3, 6]
    assert count["random", "instance"] == 3 * rows
    data = json.loads((out / "table.json").read_text())
    chosen = [e for e in data["entries"] if e["task"] == "task4" and e["method"] == "aligned"]
    assert {e["metric"] for e in chosen} == {"label accuracy"}
    mine = [line["score"] for line in found if (line["task"], line["method"], line["mode"]) == ("task5", "base", "")]
    listed = next(e for e in data["entries"] if (e["task"], e["method"], e["mode"]) == ("task5", "base", "instance"))
    assert listed["mean"] == pytest.approx(100 * np.mean(mine))


def test_scores_do_not_depend_on_the_batch_size(model, given, whole, tmp_path):
    """The rows of some columns, one by one, against those among the rows of all columns."""
    methods = ("base", "misaligned", "aligned", "oracle")
    one_by_one = replace(EVERYTHING, methods=methods, prompt="instance", batch_tokens=16)
    evaluate.evaluate(model, one_by_one, tmp_path, given)
    alone, together = by_key(tmp_path), by_key(whole[0])
    assert alone == {key: together[key] for key in alone}
    assert len(alone) == 15 + 30 + 30 + 9
    assert len({line["prediction"] for line in alone.values()}) > 10
    entries = [json.loads((folder / "table.json").read_text())["entries"] for folder in (tmp_path, whole[0])]
    assert entries[0] == [
        entry
        for entry in entries[1]
        if entry["mode"] == "instance" and {entry["method"], entry["minus"] or "base"} <= {*methods}
    ]


def test_a_killed_evaluation_goes_on_and_drops_a_half_line(model, given, whole, copied, monkeypatch):
    (_, text), out, config = whole, copied, EVERYTHING
    rows, table = by_key(out), (out / "table.json").read_text()
    written = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(written[:7]) + written[7][:20])
    (out / "table.json").unlink()
    asked = []
    answer_all = evaluate.answer_all

    def spy(llm, answerers, questions, batch_tokens, end):
        asked.append(len(questions))
        return answer_all(llm, answerers, questions, batch_tokens, end)

    monkeypatch.setattr(evaluate, "answer_all", spy)
    assert evaluate.evaluate(model, config, out, given) == text
    assert (by_key(out), (out / "table.json").read_text()) == (rows, table)
    assert evaluate.evaluate(model, config, out, given) == text
    assert asked == [len(rows) - 7, 0]
    sessions = json.loads((out / "environment.json").read_text())["sessions"]
    assert [session["start"] for session in sessions] == [0, 7, len(rows)]
    assert all(session["seconds"] >= 0 for session in sessions)


def test_a_folder_in_which_another_process_evaluates_is_refused(model, tmp_path):
    config = EvaluationConfig(examples=1, wordings=1, methods=("base",))
    with locked(tmp_path / "out"), pytest.raises(UserError, match="out: another process is writing here"):
        evaluate.evaluate(model, config, tmp_path / "out")


def test_another_evaluations_folder_is_refused(model, folder, given, copied, tmp_path, monkeypatch):
    out, config = copied, EVERYTHING
    evaluate.evaluate(model, replace(config, batch_tokens=64), out, given)
    monkeypatch.setattr(Model, "load_base", lambda self: pytest.fail("the base model is loaded"))
    with pytest.raises(UserError, match=r"settings\.json.*\(examples differ\): give another --out"):
        evaluate.evaluate(model, replace(config, examples=2), out, given)
    with pytest.raises(UserError, match="multitask, one_hot, oracles differ"):
        evaluate.evaluate(model, config, out)
    other = save_published(tmp_path / "other", load(folder).config, seed=1)
    with pytest.raises(UserError, match=r"another model .*\(model differ"):
        evaluate.evaluate(load(other), config, out, given)
    (file,) = Path(model.config.base).glob("*.safetensors")
    before = file.stat()
    os.utime(file, (1, 1))
    with pytest.raises(UserError, match=r"another model .*\(base_files differ"):
        evaluate.evaluate(load(folder), config, out, given)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds files and no evaluation"):
        evaluate.evaluate(model, config, tmp_path / "mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        evaluate.evaluate(model, config, tmp_path / "mine" / "thesis.txt")


def test_an_aligned_answer_is_that_of_the_merged_model(model, whole):
    llm = model.load_base()
    adapter = model.generate(["Say 5 last."])[0]
    expected = llm.replace(params=merge(llm.params, adapter)).chat([INPUTS[0]])[0]
    asked = ("task5", "aligned", "instance", 1, 0)
    fields = ("task", "method", "mode", "wording", "example")
    (line,) = (line for line in lines(whole[0]) if tuple(line[field] for field in fields) == asked)
    assert line["prediction"]
    assert expected.startswith(line["prediction"])


def test_the_average_is_the_mean_change_of_the_training_oracles(model, given):
    own = {task.name: given.oracles[task.name] for task in SPLITS["train"] if task.name in given.oracles}
    assert list(own) == ["task1", "task2"]
    llm = model.load_base()
    found = weights.average_answerer(llm, own).params["layers"]
    deltas = [dense_delta(some_adapter(seed)) for seed in (1, 2)]
    for name in SPEC.names:
        kernel = llm.params["layers"][name]["kernel"]
        np.testing.assert_allclose(found[name]["kernel"], kernel + (deltas[0][name] + deltas[1][name]) / 2, atol=1e-5)
    np.testing.assert_array_equal(found["k_proj"]["kernel"], llm.params["layers"]["k_proj"]["kernel"])


def test_code_is_run_only_when_asked(model, tmp_path, monkeypatch):
    example = Example("def one():", "one", ("one",), "def check(f): pass", "one")
    code = make_task(6, metric="code_pass", kind="code", test=(example,))
    monkeypatch.setattr(evaluate, "read_tasks", lambda source: {"unseen": [make_task(5), code]})
    ran = []
    monkeypatch.setattr(sandbox, "passes", lambda program: bool(ran.append(program)) or program.entry_point == "one")
    config = EvaluationConfig(examples=1, methods=("base",), max_new_tokens=16)
    assert "task6 left out: --run-code" in evaluate.evaluate(model, config, tmp_path / "a")
    with pytest.raises(UserError, match="nothing to evaluate: unseen: task6 left out: --run-code"):
        evaluate.evaluate(model, replace(config, only=("task6",)), tmp_path / "c")
    assert ran == []
    for level, note in sandbox.LEVELS.items():
        monkeypatch.setattr(sandbox, "level", lambda level=level: level)
        assert note in evaluate.evaluate(model, replace(config, run_code=True), tmp_path / "b")
    assert [line["score"] for line in lines(tmp_path / "b") if line["task"] == "task6"] == [1.0] * 3
    assert len(ran) == 3  # programs are scored again behind other walls; other answers stay
    assert len(lines(tmp_path / "b")) == 4
    evaluate.evaluate(model, replace(config, run_code=True), tmp_path / "b")
    assert len(ran) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("seen",)}, "no split 'seen': choose among train, unseen"),
        ({"only": ("task*", "x*")}, "only: no task is named like 'x\\*': correct or remove it"),
        ({"methods": ("oracle",)}, "oracle has no material: --oracles FOLDER"),
        ({"methods": ("one-hot",)}, "one-hot has no material: --one-hot RUN"),
        ({"examples": 0}, "evaluation: field examples: must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_base_is_loaded(model, monkeypatch, tmp_path, options, message):
    monkeypatch.setattr(Model, "load_base", lambda self: pytest.fail("the base model is loaded"))
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(model, EvaluationConfig(**options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_single_question_nothing_is_written(model, tmp_path):
    alone = EvaluationConfig(tasks="any", only=("task1",), methods=("misaligned",))
    with pytest.raises(UserError, match=r"any: there is nothing to ask: .*task1 is the one task"):
        evaluate.evaluate(model, alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_metric_is_refused_with_its_task():
    task = replace(SPLITS["train"][0], metric="bleu")
    with pytest.raises(UserError, match=f"{task.name}: there is no metric 'bleu'"):
        evaluate.select(EvaluationConfig(), {"train": [task]})


def test_code_without_its_tests_is_refused():
    bare = replace(SPLITS["train"][0], metric="code_pass")
    with pytest.raises(UserError, match=f"{bare.name}: the metric code_pass needs `test` and `entry_point`"):
        evaluate.select(EvaluationConfig(run_code=True), {"train": [bare]})


def test_hosts_compare_the_questions_before_they_answer_any(model, tmp_path, monkeypatch):
    seen = []

    def compare(values):
        seen.append(values)
        raise UserError("they differ")

    monkeypatch.setattr(evaluate, "agree", compare)
    other = replace(CLASSES, test=(Example("black", "one", ("one",)),))
    for task in (CLASSES, CLASSES, other):
        monkeypatch.setattr(evaluate, "read_tasks", lambda source, task=task: {"unseen": [task]})
        with pytest.raises(UserError, match="they differ"):
            evaluate.evaluate(model, EvaluationConfig(methods=("base",)), tmp_path / "out")
    assert seen[0].keys() == {"questions"}
    assert seen[0] == seen[1] != seen[2]
    assert not (tmp_path / "out").exists()


def test_tasks_are_dealt_out_whole(monkeypatch):
    """Each to one process, those of the rows that are left."""
    rows = [Row("train", make_task(n), "base", "", 0, example, None, "") for n in (5, 1, 2) for example in (0, 1)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    dealt = []
    for number in range(2):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        dealt.append([(row.task.name, row.example) for row in evaluate.deal(rows)])
    assert dealt == [[("task5", 0), ("task5", 1), ("task2", 0), ("task2", 1)], [("task1", 0), ("task1", 1)]]


def test_tasks_are_chosen_by_split_pattern_and_number():
    chosen, _ = evaluate.select(EvaluationConfig(splits=("train",), only=("*1", "task3")), SPLITS)
    assert {split: [task.name for task in tasks] for split, tasks in chosen.items()} == {"train": ["task1", "task3"]}
    chosen, _ = evaluate.select(EvaluationConfig(max_tasks=2), SPLITS)
    assert [task.name for task in chosen["train"]] == ["task1", "task2"]


def test_folders_without_adapters_are_refused(given, tmp_path):
    found = find_baselines(given.multitask, given.multitask.parent)
    assert sorted(found.oracles) == ["shared", "task1", "task2", "task4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--multitask takes the folder of one PEFT adapter"):
        find_baselines(tmp_path / "empty", None)
    with pytest.raises(UserError, match="holds no folder with a PEFT adapter"):
        find_baselines(None, tmp_path / "empty")


def test_a_one_hot_hypernetwork_is_asked_for_the_tasks_it_knows(model, tmp_path):
    known = one_hot(tmp_path / "run", model, ["task1", "task2"])
    source = weights.one_hot_answerer(model.load_base(), known)
    found = source.fetch(["task2", "task1", "task2"])
    expected = known.model.adapters(Condition(z=np.eye(2, dtype=np.float32)[[1, 0, 1]]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.any(found.weights["q_proj"]["a"][0] != found.weights["q_proj"]["a"][1])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ('{"tasks": ["task1"]}', "its model does not read the 1 task identities of tasks.json"),
        ('{"tasks": 1}', "tasks.json: field tasks: must be a valid tuple, got 1"),
        (None, "tasks.json cannot be read|tasks.json is missing"),
    ],
)
def test_a_run_that_is_none_of_task_identities_is_refused(model, tmp_path, tasks, message):
    one_hot(tmp_path / "run", model, ["task1", "task2"])
    path = tmp_path / "run" / "tasks.json"
    path.unlink() if tasks is None else path.write_text(tasks)
    with pytest.raises(UserError, match=message):
        find_baselines(None, None, tmp_path / "run")


# --- adapters for each example


def test_each_question_is_answered_by_its_own_adapter(folder, tmp_path, monkeypatch):
    """Two models, as answered by the merged adapter of each question alone; adapters are written batch by batch."""
    base = load(folder).config.base
    both = load(save_published(tmp_path / "both", reading("both", base)))
    save_published(tmp_path / "run" / "model", reading("instance", base), seed=2)
    given = find_baselines(None, None, instance=str(tmp_path / "run"))
    written, answered = [], {}
    monkeypatch.setattr(engine, "ADAPTERS", 2)
    adapters = Model.adapters
    monkeypatch.setattr(
        Model, "adapters", lambda self, some: written.append(len(some.instance)) or adapters(self, some)
    )
    methods = ("misaligned", "aligned", "instance")
    config = EvaluationConfig(examples=3, wordings=1, methods=methods, splits=("train",), only=("task1", "task2"))
    text = evaluate.evaluate(both, config, tmp_path / "out", given)
    assert METHODS["instance"].title in text
    assert max(written) == 2
    for line in lines(tmp_path / "out"):
        answered[line["task"], line["method"], line["example"]] = line["prediction"]
    assert len(answered) == 2 * 3 * 3
    llm = both.load_base()
    for (task, method, example), answer in answered.items():
        named = {"aligned": task, "misaligned": {"task1": "task2", "task2": "task1"}[task], "instance": None}[method]
        source = given.instance if named is None else both
        texts = None if named is None else [f"Say {named[-1]} first."]
        adapter = source.generate(texts, [INPUTS[example]])[0]
        whole = llm.replace(params=merge(llm.params, adapter)).chat([INPUTS[example]])[0]
        assert whole.startswith(answer)
    assert len(set(answered.values())) > 3
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["instance"] == [given.instance.fingerprint, "hash"]
    with pytest.raises(UserError, match=r"\(instance differ\): give another --out"):
        evaluate.evaluate(both, config, tmp_path / "out", replace(given, instance=both))


def test_a_column_of_instances_needs_a_model_that_reads_them(folder, model, tmp_path):
    with pytest.raises(UserError, match="model: reads descriptions: --instance takes one that reads instances"):
        find_baselines(None, None, instance=str(folder))
    with pytest.raises(UserError, match="the method instance has no material: --instance MODEL"):
        evaluate.evaluate(model, EvaluationConfig(methods=("instance",)), tmp_path / "out")
