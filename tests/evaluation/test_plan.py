"""Which prompts and adapters the methods ask for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_published import save_base

from t2l_jax.data.tasks import Example, Task
from t2l_jax.errors import UserError
from t2l_jax.evaluation import plan, sandbox
from t2l_jax.evaluation.engine import Answerer
from t2l_jax.evaluation.metrics import CODE_PASS
from t2l_jax.evaluation.plan import METHODS, EvaluationConfig, Planner, all_keys, few_shot, misalign, random_text
from t2l_jax.llm import LLM

USUAL = tuple(name for name, method in METHODS.items() if not method.defined)
WORDS = ("red", "blue", "green", "white", "black")


def make_task(name, wordings=("say the first word", "answer with the last word")):
    train = tuple(Example(f"{word} one", f"{word} two", (word,)) for word in WORDS)
    test = (Example("red blue", "red", ("red",)), Example("green white", "green white black", ("green",)))
    return Task(name, wordings, train, test)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM.load(str(save_base(tmp_path_factory.mktemp("base"))))


CONFIG = EvaluationConfig(examples=2, wordings=3, prompt="both", max_new_tokens=16, max_prompt_tokens=99)


def rows(llm, methods, tasks=None, named=None, **changes):
    answerers = {method.weights: Answerer(method.weights, llm.params) for method in METHODS.values()}
    planner = Planner(llm, answerers, methods, replace(CONFIG, **changes), named or {})
    return list(planner.rows({"unseen": tasks or [make_task("a"), make_task("b", ("say two", "say three"))]}))


def text(llm, row):
    return llm.tokenizer.decode(row.question.prompt)


def test_prompts_hold_the_instance_and_what_the_mode_adds(llm):
    found = {}
    for row in rows(llm, USUAL, named={"oracle": "ab", "one-hot": "ab"}):
        if (row.task.name, row.wording, row.example) == ("a", 0, 0):
            found[row.method, row.mode] = text(llm, row)
    bare, described = "system user red blue assistant", "system user say the first word red blue assistant"
    adapters = ("multitask", "average", "random", "misaligned", "aligned", "one-hot", "oracle")
    assert {found[name, "instance"] for name in adapters} == {found["base", ""]} == {bare}
    assert {found[name, "instruction"] for name in adapters} == {found["description", ""]} == {described}


def test_prompts_with_the_definition_hold_nothing_else_of_the_task(llm):
    task = replace(make_task("a"), definition="say two")
    found = rows(llm, ("base", "definition", "multitask", "aligned"), tasks=[task], prompt="definition")
    asked = {(row.method, row.mode): text(llm, row) for row in found if row.example == 0}
    bare, defined = "system user red blue assistant", "system user say two red blue assistant"
    assert asked == {
        ("base", ""): bare, ("definition", ""): defined,
        ("multitask", "definition"): defined, ("aligned", "definition"): defined,
    }  # fmt: skip
    assert len({row.question.adapter for row in found if row.method == "aligned"}) == 2  # one for each description
    with pytest.raises(UserError, match="task b: has no definition, which prompts are to hold: add the field"):
        rows(llm, ("aligned",), prompt="definition", tasks=[task, make_task("b")])


def test_adapters_are_written_from_the_methods_text(llm):
    found = {}
    methods, named = ("random", "misaligned", "aligned", "one-hot", "oracle"), {"oracle": "b", "one-hot": "a"}
    for row in rows(llm, methods, prompt="instance", named=named):
        found.setdefault((row.task.name, row.method), []).append(row.question.adapter)
    assert found["a", "aligned"][::2] == found["b", "misaligned"][::2] == list(make_task("a").descriptions)
    assert found["b", "aligned"][::2] == ["say two", "say three"]
    assert len(set(found["a", "random"] + found["b", "random"])) == 6
    assert found["b", "oracle"] == ["b", "b"]
    assert ("a", "oracle") not in found
    assert found["a", "one-hot"] == ["a", "a"]
    assert ("b", "one-hot") not in found


def test_few_shot_is_a_conversation_of_training_examples(llm):
    task = make_task("a")
    seen = [llm.tokenizer.decode(few_shot(llm, task, example, "say two", 3)) for example in task.test]
    shared = [words.split(" user ")[1:4] for words in seen]
    assert shared[0] == shared[1]
    assert shared[0][0].startswith("say two ")
    for turn in shared[0]:
        question, answer = turn.removeprefix("say two ").split(" assistant ")
        assert answer == question.replace(" one", " two")
    assert [words.split(" user ")[4] for words in seen] == ["red blue assistant", "green white assistant"]
    bare = Task("c", ("d",), (), task.test)
    assert {row.method for row in rows(llm, ("base", "few-shot"), tasks=[bare])} == {"base"}


def test_keys_are_unique_and_follow_the_weights(llm):
    found = rows(llm, USUAL)
    assert max(Counter(row.key for row in found).values()) == 1
    assert [row.key for row in found] == [row.key for row in rows(llm, USUAL)]
    answerers = {method.weights: Answerer("others", llm.params) for method in METHODS.values()}
    other = Planner(llm, answerers, ("base",), replace(CONFIG, prompt="instance"))
    assert not {row.key for row in found} & {row.key for row in other.rows({"unseen": [make_task("a")]})}


def test_a_prompt_that_is_too_long_is_refused_with_its_task(llm):
    with pytest.raises(UserError, match=r"a: test example 1 makes a prompt of 5 tokens, more than 4: .*--max-prompt"):
        rows(llm, ("base",), tasks=[make_task("a")], max_prompt_tokens=4)


def test_an_answer_has_room_for_the_longest_right_one(llm):
    def limit(example, metric="exact_match", most=256):
        task = Task("c", ("d",), (), (example,), metric=metric)
        return next(iter(rows(llm, ("base",), tasks=[task], max_new_tokens=most))).question.limit

    assert limit(Example("x", "one", ("one",))) == 8
    assert limit(Example("x", "one", ("one",)), "numeric_match") == 64
    assert limit(Example("x", "one " * 8, ("one",))) == 16
    assert limit(Example("x", "one", ("one " * 20,)), most=20) == 20


def test_right_answers_that_cannot_be_given_are_noted(llm):
    """Not where one of an example's answers is short enough, nor where the answer is chosen."""
    long = "one " * 20
    examples = (Example("x", long, (long,)), Example("x", long, ("one",)), Example("x", "one", ("one",)))
    for task, notes in (
        (Task("c", ("d",), (), examples), ["c: 1 of 2 right answers have more than the 16 tokens"]),
        (Task("c", ("d",), (), examples[1:]), []),
        (Task("c", ("d",), (), examples, labels=(long.strip(), "one"), kind="classification"), []),
    ):
        planner = Planner(llm, {"base": Answerer("base", llm.params)}, ("base",), CONFIG)
        list(planner.rows({"unseen": [task]}))
        assert [note.partition(" that may")[0] for note in planner.notes] == notes


def test_prompts_with_fewer_examples_than_there_should_be_are_noted(llm, monkeypatch):
    def notes(task):
        planner = Planner(llm, {"base": Answerer("base", llm.params)}, ("few-shot",), replace(CONFIG, wordings=2))
        list(planner.rows({"unseen": [task]}))
        return planner.notes

    task = make_task("a")
    assert notes(task) == []
    assert notes(replace(task, train=task.train[:2])) == ["a: 4 prompts hold fewer than 3 examples (only 2 there)"]
    monkeypatch.setattr(plan, "LONGEST_FEW_SHOT", 20)
    assert notes(task) == ["a: 4 prompts hold fewer than 3 examples (more than 20 tokens)"]


def test_keys_of_programs_follow_the_walls_and_the_scoring(llm, monkeypatch):
    code = replace(make_task("a"), metric=CODE_PASS)
    keys = {}
    for version, level in ((1, "filter"), (1, "landlock"), (2, "filter")):
        monkeypatch.setattr(sandbox, "SCORING", version)
        monkeypatch.setattr(sandbox, "level", lambda level=level: level)
        for task in (code, make_task("a")):
            keys.setdefault(task.metric, set()).update(row.key for row in rows(llm, ("base",), tasks=[task]))
    assert [len(keys[metric]) for metric in (CODE_PASS, make_task("a").metric)] == [6, 2]


def test_a_program_may_be_as_long_as_any_answer(llm, monkeypatch):
    monkeypatch.setattr(sandbox, "level", lambda: "filter")
    code = Task("c", ("d",), (), (Example("def f():", "one", ("one",)),), metric=CODE_PASS)
    (row,) = rows(llm, ("base",), tasks=[code])
    assert row.question.limit == 16


def test_one_task_alone_has_no_misaligned_adapter(llm):
    assert rows(llm, ("misaligned",), tasks=[make_task("a")]) == []


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 70])
def test_misaligned_is_another_task_for_every_task(count):
    texts = [f"text {index}" for index in range(count)]
    moved = misalign(texts)
    assert sorted(moved) == sorted(texts)
    assert all(a != b for a, b in zip(moved, texts, strict=True))


def test_random_strings_differ_and_stay():
    texts = {random_text(task, wording) for task in "ab" for wording in range(3)}
    assert len(texts) == 6
    assert random_text("a", 1) in texts
    assert np.mean([len(text) for text in texts]) == 61


@pytest.mark.parametrize("reads", ["instance", "both"])
def test_a_model_that_reads_instances_is_asked_about_each_example(llm, reads):
    """The misaligned and random columns replace the description or, without one, the instance."""
    tasks = [make_task("a"), make_task("b", ("say two", "say three"))]
    tasks[1] = replace(tasks[1], test=(Example("one two", "one", ("one",)),))
    methods = ("random", "misaligned", "aligned")
    answerers = {"hypernet": Answerer("hypernet", llm.params)}
    planner = Planner(llm, answerers, methods, replace(CONFIG, prompt="instance"), reads={"hypernet": reads})
    found = {}
    for row in planner.rows({"unseen": tasks}):
        found.setdefault((row.task.name, row.method), []).append(row.question.adapter)
    own, other = ["red blue", "green white"], "one two"
    if reads == "instance":
        assert found["a", "aligned"] == [("", text) for text in own]
        assert found["a", "misaligned"] == [("", other)] * 2  # the other task has one example
        assert found["b", "misaligned"] == [("", own[0])]
        assert [key[0] for key in found["a", "random"]] == [""] * 6
        assert len(set(found["a", "random"])) == 3
    else:
        assert found["a", "aligned"] == [(text, input) for text in make_task("a").descriptions for input in own]
        assert found["a", "misaligned"] == [(text, input) for text in ("say two", "say three") for input in own]
        assert len(set(found["a", "random"])) == 6
        assert {key[1] for key in found["a", "random"]} == set(own)
    every = set()
    for name in methods:
        for task, another in (tasks, tasks[::-1]):
            every |= set(all_keys(reads, METHODS[name], task, another, CONFIG))
    assert every >= {key for keys in found.values() for key in keys}
