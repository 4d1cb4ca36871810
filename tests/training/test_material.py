"""What a run reads of its tasks, with a text encoder that is a table of numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_recipe import make_recipe, write_task

from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.data.prompts import PromptConfig
from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import render
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve
from t2l_jax.training import BestConfig
from t2l_jax.training.material import Reader, check_best, read_material
from t2l_jax.training.objectives import Sft
from t2l_jax.training.trainees import (
    TRAINEES,
    InstanceHypernetwork,
    InstanceTextHypernetwork,
    LoraTable,
    OneHotHypernetwork,
    TextHypernetwork,
)

TEXTS = ("red", "blue", "green")


class LengthEncoder:
    """A text's z is its length."""

    name = "length"
    dim = 1
    adapter = None
    fingerprint = "length"

    def embed(self, texts, cache=None):
        return np.asarray([[len(text)] for text in texts], np.float32)


def reader(tokenizer, modes, cache) -> Reader:
    return Reader(TextHypernetwork, tokenizer, LengthEncoder(), modes, cache)


def make_task(number: int, wordings: int = 1, last: str = "green") -> Task:
    examples = tuple(Example(f"{number} {text}", text, (text,)) for text in (*TEXTS[:2], last))
    texts = tuple("x" * (10 * number + wording + 1) for wording in range(wordings))
    return Task(f"t{number}", texts, examples, examples, unseen_descriptions=("y" * (number + 1),))


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(resolve(smollm2))


def test_every_task_has_its_own_embeddings_and_tables(tokenizer, tmp_path):
    tasks = [make_task(number, wordings=number + 1) for number in range(3)]
    modes = PromptConfig().modes(0.5)
    found = reader(tokenizer, modes, tmp_path).training_tasks(tasks, (1.0, 2.0, 3.0), 64)
    assert [(task.name, task.weight) for task in found] == [("t0", 1.0), ("t1", 2.0), ("t2", 3.0)]
    for number, task in enumerate(found):
        np.testing.assert_array_equal(task.conditions.z[:, 0], [10 * number + n + 1 for n in range(number + 1)])
        np.testing.assert_array_equal(task.conditions.task, [number] * (number + 1))
        wordings = tasks[number].descriptions
        for index, text in enumerate(TEXTS):
            prompt = f"{number} {text}"
            wanted = {"instance": None, "instruction": wordings[index % len(wordings)]}
            for mode, wording in wanted.items():
                assert list(task.examples[mode][index].prompt) == render(tokenizer, prompt, wording)


def test_validation_batches_share_the_tasks_evenly_and_are_filled_up(tokenizer, tmp_path):
    """Five tasks, one without an example that fits, in batches of three: two and two, and an empty one in each."""
    long = "word " * 60
    whole = [make_task(number) for number in range(4)]
    unfit = Task("t4", ("x",), (), (Example(long, "a", ("a",)),))
    shape = BatchConfig(3, 1, 64)
    places = {f"t{number}": 3 - number for number in range(4)}
    read = reader(tokenizer, ("instance",), tmp_path)
    found = read.validation_batches({"seen": [*whole, unfit], "unseen": []}, shape, places)
    assert list(found) == ["seen"]
    first, second = found["seen"]
    assert [list(batch.condition.task) for batch in (first, second)] == [[3, 2, 3], [1, 0, 1]]
    for batch in (first, second):
        np.testing.assert_array_equal(
            batch.condition.z[:, 0], 4 - batch.condition.task
        )  # the wordings that are not trained on
        assert not batch.segments[2].any()
        assert batch.segments[:2].max() >= 2
        np.testing.assert_allclose(batch.weights.sum((1, 2)), [0.5, 0.5, 0], rtol=1e-5)


def test_each_mode_that_is_trained_is_validated(tokenizer, tmp_path):
    splits = {"seen": [make_task(1)], "unseen tasks": [make_task(2)]}
    shape = BatchConfig(1, 1, 64)
    found = reader(tokenizer, PromptConfig().modes(0.5), tmp_path).validation_batches(splits, shape, {"t1": 0})
    assert list(found) == ["seen, instance", "seen, instruction", "unseen tasks, instance", "unseen tasks, instruction"]
    (batch,) = found["unseen tasks, instruction"]
    start = tokenizer.decode(batch.tokens[0, 0][np.isin(batch.segments[0, 0], (1, 2))])
    assert "user\nyyy\n\n2 green" in start  # the last test example comes first
    assert batch.condition.task == [-1]  # not one of those trained on


# --- what a recipe reads, with a tiny base model


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


def read(recipe, trainee=TextHypernetwork):
    encoder = LengthEncoder() if trainee.reads_text else None
    return read_material(recipe, trainee, load_tokenizer(resolve(recipe.base)), encoder)


@pytest.mark.parametrize("trainee", [LoraTable, OneHotHypernetwork])
def test_each_task_is_validated_by_its_own_identity(recipe, trainee):
    """What a task answers in training it answers in validation, where the batch has the same number for it."""
    material = read(recipe, trainee)
    answers = {}
    for batch in (material.sampler.draw(0), *material.validation["seen"]):
        for row, task in enumerate(batch.condition.task):
            used = batch.targets[row][batch.weights[row] > 0]
            answers.setdefault(int(task), []).append(set(used.tolist()))
    assert all(trained == tested for trained, tested in answers.values())
    assert answers[0] != answers[1]
    assert list(material.validation) == ["seen"]


@pytest.mark.parametrize("name", ["hypernet", "multitask"])
def test_who_can_be_asked_about_new_tasks_is_validated_on_them(recipe, name):
    assert list(read(recipe, TRAINEES[name]).validation) == ["seen", "unseen tasks"]


@pytest.mark.parametrize(
    ("share", "modes"), [(0.0, ["instance"]), (1.0, ["instruction"]), (0.5, ["instance", "instruction"])]
)
def test_what_the_base_model_reads_in_each_prompt_mode(recipe, share, modes):
    """The instance alone, or a wording of the task before it: a training wording in training, a new one after."""
    material = read(replace(recipe, instruction_share=share))
    tokenizer = load_tokenizer(resolve(recipe.base))

    def texts(batch, at: int) -> set[str]:
        tokens, segments = batch.tokens[at, 0], batch.segments[at, 0]
        shared = (tokens[segments == 1],)
        members = [np.concatenate([*shared, tokens[segments == member]]) for member in range(2, segments.max() + 1)]
        return {tokenizer.decode(member) for member in members}

    drawn = [material.sampler.draw(n) for n in range(20)]
    seen = set().union(*(texts(batch, list(batch.condition.task).index(0)) for batch in drawn))
    wanted = {
        "instance": {f"system user one two {colour} assistant one" for colour in ("red", "blue")},
        "instruction": {
            "system user say the first word one two red assistant one",
            "system user answer with the first word one two blue assistant one",
        },
    }
    assert seen == set().union(*(wanted[mode] for mode in modes))
    names = [f"{split}{f', {mode}' * (len(modes) > 1)}" for split in ("seen", "unseen tasks") for mode in modes]
    assert list(material.validation) == names
    for name, mode in zip(names, 2 * modes, strict=True):
        (batch,) = material.validation[name]
        assert batch.tokens.shape == (2, 1, 48)
        np.testing.assert_allclose(batch.weights.sum(), 1, rtol=1e-6)
        wording = "answer with the last word " * (mode == "instruction")
        if name.startswith("unseen"):
            answers = {f"system user {wording}one two {colour} assistant {colour}" for colour in ("red", "blue")}
            assert texts(batch, 0) == answers


def paper_forms(recipe, folder, **prompts):
    """The recipe with a task of its own, whose second example has two answers and a long input."""
    write_task(folder, "first", ["say the first word"])
    fields = {"name": "first", "descriptions": ["say the first word"], "definition": "answer with the first word"}
    (folder / "first" / "task.yaml").write_text(json.dumps(fields))
    long = {"input": "one two " * 40 + "red", "output": "one", "outputs": ["one", "two"]}
    for split in ("train", "test"):
        with (folder / "first" / f"{split}.jsonl").open("a") as file:
            file.write(json.dumps(long) + "\n")
    form = PromptConfig(**prompts)
    return replace(recipe, tasks=(str(folder),), prompts=form, batch=replace(recipe.batch, tasks=1, rows=2))


def test_definitions_joined_answers_and_cut_prompts(recipe, tmp_path):
    """Training and validation batches alike hold the form that the recipe says."""
    whole = paper_forms(recipe, tmp_path / "tasks", instruction="definition", answers="joined")
    whole = replace(whole, instruction_share=1.0, batch=replace(whole.batch, too_long="cut"))
    material = read(whole)
    tokenizer = load_tokenizer(resolve(recipe.base))
    assert list(material.validation) == ["seen"]
    for batch in (material.sampler.draw(0), *material.validation["seen"]):
        texts, answers = set(), set()
        for row in range(2):
            members = batch.segments[0, row]
            for member in set(members.tolist()) - {0}:
                here = members == member
                texts.add(tokenizer.decode(batch.tokens[0, row][here]))
                answers.add(tokenizer.decode(batch.targets[0, row][here & (batch.weights[0, row] > 0)]))
        assert "system user answer with the first word one two red assistant one" in texts
        (cut,) = (text for text in texts if "system" not in text)
        assert cut.startswith(("one two one", "two one two"))
        assert len(tokenizer(cut)["input_ids"]) == 48
        assert any("one" in answer and "two" in answer for answer in answers)
    with pytest.warns(UserWarning, match="longer than a row of 48 tokens and left out"):
        read(replace(whole, batch=replace(whole.batch, too_long="drop")))


def test_a_recipe_with_definitions_refuses_a_task_without(recipe):
    with pytest.raises(UserError, match="task first: has no definition"):
        read(replace(recipe, prompts=PromptConfig(instruction="definition"), instruction_share=0.5))


def test_tasks_that_fit_in_no_row_are_left_out_and_named(recipe, tmp_path):
    write_task(tmp_path, "first", ["say the first word"])
    write_task(tmp_path, "long", ["say the last word"])
    line = {"input": "one two " * 40, "output": "two"}
    for split in ("train", "test"):
        (tmp_path / "long" / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    short = replace(recipe, tasks=(str(tmp_path),), batch=replace(recipe.batch, tasks=1))
    with pytest.warns(UserWarning, match="1 of 2 training tasks are left out.*48 tokens: long"):
        material = read(short, LoraTable)
    assert [task.name for task in material.tasks] == ["first"]
    with pytest.raises(UserError, match="no task has an example that fits in a row of 2 tokens"):
        read(replace(recipe, batch=replace(recipe.batch, length=2)))


BATCHES = {"seen": [], "unseen tasks": []}


@pytest.mark.parametrize(
    ("best", "validation", "message"),
    [
        (BestConfig(patience=2), {}, "best: no task has test examples to validate on"),
        (BestConfig(), {"unseen tasks": []}, "no training task has test examples, and the tasks that results are"),
        (BestConfig(by="unseen/exact"), BATCHES, r"best.by is 'unseen/exact': write a validation set \(seen, unseen"),
        (BestConfig(by="seen/bleu"), BATCHES, "best.by is 'seen/bleu': .* and a metric .*cross_entropy, exact"),
    ],
)
def test_a_best_that_cannot_be_chosen_is_refused(best, validation, message):
    with pytest.raises(UserError, match=message):
        check_best(best, Sft, validation)


# --- an adapter for each example


def test_each_example_has_the_embedding_of_its_input(tokenizer, tmp_path):
    """LengthEncoder: the length of the input says which of the three answers is right, in training and validation."""
    answers = dict(zip((5, 6, 7), TEXTS, strict=True))  # "0 red", "0 blue", "0 green"
    tasks = [make_task(number) for number in range(4)]
    read = replace(reader(tokenizer, ("instance",), tmp_path), trainee=InstanceTextHypernetwork)
    shape = BatchConfig(3, 2, 64, packing=False)
    trained = read.training_tasks(tasks, (1.0,) * 4, 64)
    for task in trained:
        np.testing.assert_array_equal(task.instances, [[5], [6], [7]])
    splits = {"seen": tasks, "one": tasks[:1]}
    validation = read.validation_batches(splits, shape, {f"t{number}": number for number in range(4)})
    assert [len(validation[name]) for name in splits] == [2, 1]  # 12 examples, and 3, in batches of 6
    for batch in (Sampler(trained, shape, 0).draw(0), *validation["seen"], *validation["one"]):
        assert batch.tokens.shape == (6, 1, 64)
        for at in np.flatnonzero(batch.weights.sum((1, 2)) > 0):
            task, length = int(batch.condition.task[at]), int(batch.condition.instance[at, 0])
            real = tokenizer.decode(batch.tokens[at, 0][batch.segments[at, 0] > 0])
            assert f"{task} {answers[length]}" in real
    everywhere = np.concatenate([batch.condition.instance for batch in validation["seen"]])
    assert sorted(everywhere[:, 0]) == [5] * 4 + [6] * 4 + [7] * 4
    assert [np.sum(batch.weights.sum((1, 2)) > 0) for batch in validation["one"]] == [3]


def test_an_example_without_input_is_refused_with_its_task(tokenizer, tmp_path):
    read = replace(reader(tokenizer, ("instance",), tmp_path), trainee=InstanceHypernetwork)
    task = replace(make_task(1), train=(Example(" ", "red", ("red",)),))
    with pytest.raises(UserError, match="task t1: an example has an empty input"):
        read.training_tasks([task], (1.0,), 64)
