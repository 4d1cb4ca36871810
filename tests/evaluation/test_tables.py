"""The table of base, prompted, misaligned and aligned: who reads what, and that nothing depends on the batches."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from tiny_published import HashEncoder, save_base, save_published, tiny_config

from t2l_jax import model as model_module
from t2l_jax.data.tasks import Example, Task, spread
from t2l_jax.errors import UserError
from t2l_jax.evaluation import metrics, tables
from t2l_jax.evaluation.tables import ALIGNED, BASE, MISALIGNED, MODES, PROMPTED, Score, evaluate_tasks, markdown
from t2l_jax.lora import merge
from t2l_jax.model import Model, load

INPUTS = ("red blue green", "one two three four", "black white")


def make_task(number: int) -> Task:
    """A task whose wordings name it; the longer its number, the longer its answers."""
    examples = tuple(Example(text, " ".join(["one"] * (2 * number)), ("one", "two")) for text in INPUTS)
    texts = (f"Say train {number}.",)
    return Task(f"task{number}", texts, (), examples, "hashed", (f"Say {number} first.", f"Say {number} last."))


TASKS = [make_task(number) for number in range(1, 6)]


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    encoder = HashEncoder()
    monkeypatch.setattr(model_module, "load_encoder", lambda source: encoder)
    return encoder


@pytest.fixture(autouse=True)
def _metric(monkeypatch):
    """A metric that differs for any two answers."""
    monkeypatch.setitem(metrics.METRICS, "hashed", lambda answer, accepted: zlib.crc32(answer.encode()) / 2**32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    return save_published(path / "model", tiny_config(save_base(path / "base")))


@pytest.fixture(scope="module")
def llm(folder):
    return load(folder).load_base()


@pytest.fixture
def model(folder):
    return load(folder)


def score(model, llm, mode, **options):
    return tables.score_tasks(model, llm, TASKS, mode, 0, len(INPUTS), **options)


def test_scores_do_not_depend_on_the_batches(model, llm):
    together = score(model, llm, ALIGNED)
    assert len(set(together)) == len(TASKS)
    assert score(model, llm, ALIGNED, tasks_per_batch=2) == together
    assert score(model, llm, MISALIGNED) != together


def test_an_aligned_score_is_that_of_the_merged_model(model, llm):
    adapter = model.generate([TASKS[0].unseen_descriptions[0]])[0]
    alone = llm.replace(params=merge(llm.params, adapter))
    assert score(model, llm, ALIGNED)[0] == pytest.approx(score(model, alone, BASE)[0])


@pytest.fixture
def prompts(monkeypatch):
    """What reaches the base model, in place of generating: (prompts, adapter) of each batch."""
    calls = []

    def fake(config, params, prompts, *, adapter, sampling, stop_ids):
        calls.append((prompts, adapter))
        return [[[5] for _ in rows] for rows in prompts]

    monkeypatch.setattr(tables, "generate", fake)
    return calls


@pytest.mark.parametrize(
    ("mode", "prompt", "instructed", "adapted"),
    [
        (BASE, "instance", False, False),
        (PROMPTED, "instance", True, False),
        (MISALIGNED, "instance", False, True),
        (ALIGNED, "instance", False, True),
        (BASE, "instruction", False, False),
        (PROMPTED, "instruction", True, False),
        (ALIGNED, "instruction", True, True),
    ],
)
def test_who_reads_what(model, llm, prompts, encoder, mode, prompt, instructed, adapted):
    model = Model(replace(model.config, prompt=prompt), model.variables)
    tables.score_tasks(model, llm, TASKS, mode, 1, 2, tasks_per_batch=3)
    assert [len(batch) for batch, _ in prompts] == [3, 2]
    assert all((adapter is not None) == adapted for _, adapter in prompts)
    texts = [llm.tokenizer.decode(row) for batch, _ in prompts for rows in batch for row in rows]
    assert len(texts) == 2 * len(TASKS)  # two examples of each task
    assert all(any(instance in text for instance in INPUTS[:2]) for text in texts)
    assert all(("last" in text) == instructed for text in texts)  # the second unseen wording
    wordings = [task.unseen_descriptions[1] for task in TASKS]
    if adapted:
        assert sorted(encoder.texts) == sorted(wordings)
        assert all((a == b) == (mode == ALIGNED) for a, b in zip(encoder.texts, wordings, strict=True))
    else:
        assert encoder.texts == []


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 70])
def test_misaligned_is_another_task_for_every_task(count):
    texts = [f"text {index}" for index in range(count)]
    moved = tables.misalign(texts)
    assert sorted(moved) == sorted(texts)
    assert all(a != b for a, b in zip(moved, texts, strict=True))


def test_tasks_without_unseen_wordings_use_the_others():
    task = replace(TASKS[0], descriptions=("a", "b", "c"), unseen_descriptions=())
    assert [task.held_out_wording(draw) for draw in range(4)] == ["a", "b", "c", "a"]
    assert [TASKS[0].held_out_wording(draw)[-6:] for draw in range(3)] == ["first.", " last.", "first."]


def test_tasks_are_spread_evenly():
    untested = replace(TASKS[0], test=())
    assert spread([untested, *TASKS], 2) == [TASKS[0], TASKS[3]]
    assert spread(TASKS, 5) == spread(TASKS, 99) == TASKS


@pytest.fixture
def evaluated(model, llm, monkeypatch, tmp_path):
    """An evaluation whose scores are made up; what was scored, the table, and the folder."""
    scored = []

    def fake(model, llm, tasks, mode, draw, examples):
        scored.append((len(tasks), mode, draw, examples))
        return [(MODES.index(mode) + draw) / 10 for _ in tasks]

    monkeypatch.setattr(tables, "score_tasks", fake)
    monkeypatch.setattr(tables, "read_tasks", lambda source: {"train": TASKS, "unseen": TASKS[:3]})
    monkeypatch.setattr(Model, "load_base", lambda self: llm)
    table = evaluate_tasks(model, "words", examples=2, draws=3, max_tasks=4, out=tmp_path / "out")
    return scored, table, tmp_path / "out"


def test_the_base_model_is_scored_once_the_others_once_a_draw(evaluated):
    scored, _, _ = evaluated
    assert scored.count((3, BASE, 0, 2)) == 2  # five tasks, every second; and three
    for mode in (PROMPTED, MISALIGNED, ALIGNED):
        assert [draw for _, m, draw, _ in scored if m == mode] == [0, 1, 2] * 2
    assert len(scored) == 2 * (1 + 3 * 3)


def test_the_table(evaluated):
    _, table, out = evaluated
    spread_of_draws = 100 * np.std([0.0, 0.1, 0.2])
    cells = ["0.0 ± 0.0", *(f"{10 * k + 10:.1f} ± {spread_of_draws:.1f}" for k in (1, 2, 3))]
    assert table.splitlines() == [
        "| tasks | base | base + description | misaligned adapter | aligned adapter |",
        "|---|---|---|---|---|",
        f"| seen (3) | {' | '.join(cells)} |",
        f"| unseen (3) | {' | '.join(cells)} |",
    ]
    assert (out / "table.md").read_text() == table
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 3 * (1 + 3 * 3)
    assert lines[0] == {"split": "seen", "task": "task1", "mode": BASE, "draw": 0, "score": 0.0}


def test_a_mean_is_over_tasks_its_spread_over_draws():
    scores = [
        Score("seen", f"t{task}", mode, draw, task / 2 + draw / 10)
        for mode in MODES
        for draw in (0, 1)
        for task in (0, 1)
    ]
    assert "| seen (2) | 30.0 ± 5.0 | 30.0 ± 5.0 |" in markdown(scores)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([TASKS[0]], {}, "task1 is the one seen task"),
        ([replace(TASKS[0], test=())], {}, "no task has test examples"),
        ([], {}, "no task has test examples"),
        ([TASKS[0], replace(TASKS[1], metric="bleu")], {}, "no metric 'bleu'"),
        (TASKS, {"examples": 0}, "at least 1, got 0, 3 and 70"),
        (TASKS, {"draws": 0}, "at least 1"),
        (TASKS, {"max_tasks": -2}, "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_base_is_loaded(model, monkeypatch, tasks, options, message):
    monkeypatch.setattr(tables, "read_tasks", lambda source: {"train": tasks, "unseen": []})
    monkeypatch.setattr(Model, "load_base", lambda self: pytest.fail("the base model is loaded"))
    with pytest.raises(UserError, match=message):
        evaluate_tasks(model, "somewhere", **options)
