"""The comparison that says whether a description became a working adapter.

Every task is answered greedily in four modes: by the base model, by the base model with the description in the prompt,
through the adapter written from the description (aligned), and through one written from another task's description
(misaligned). Axes: T tasks of a batch, R examples of a task.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from t2l_jax.data.prompts import render
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.data.tasks import Task, spread
from t2l_jax.errors import UserError
from t2l_jax.evaluation.metrics import find_metric
from t2l_jax.generation import Sampling, generate
from t2l_jax.io.files import atomic_write
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter
from t2l_jax.model import Model
from t2l_jax.progress import progress_bar

BASE, PROMPTED, MISALIGNED, ALIGNED = MODES = (
    "base",
    "base + description",
    "misaligned adapter",
    "aligned adapter",
)


@dataclass(frozen=True)
class Score:
    """The mean metric of one task in one mode with one wording (draw)."""

    split: str
    task: str
    mode: str
    draw: int
    score: float


def evaluate_tasks(
    model: Model, source: str, examples: int = 5, draws: int = 3, max_tasks: int = 70, out: Path | None = None
) -> str:
    """The markdown table of all modes on the seen and the unseen tasks of a source, written to `out` as well.

    Draws are wordings that were never trained on, where tasks have them. `misaligned` is another task of the split.
    Raises UserError for counts below one, an unknown metric, and a split of one task, which has no other.
    """
    if min(examples, draws, max_tasks) < 1:
        raise UserError(f"examples, draws and tasks must be at least 1, got {examples}, {draws} and {max_tasks}")
    found = read_tasks(source)
    splits = {"seen" if name == TRAIN else name: spread(tasks, max_tasks) for name, tasks in found.items()}
    check_splits(source, splits)
    llm = model.load_base()
    runs = [
        (name, mode, draw)
        for name, tasks in splits.items()
        for mode in (MODES if tasks else ())
        for draw in range(1 if mode == BASE else draws)  # the base model alone reads no wording
    ]
    scores: list[Score] = []
    with progress_bar() as progress:
        bar = progress.add_task("evaluating", total=len(runs), rate="")
        for name, mode, draw in runs:
            values = score_tasks(model, llm, splits[name], mode, draw, examples)
            scores += [Score(name, t.name, mode, draw, v) for t, v in zip(splits[name], values, strict=True)]
            progress.advance(bar)
    table = markdown(scores)
    if out is not None:
        atomic_write(out / "scores.jsonl", "".join(json.dumps(asdict(score)) + "\n" for score in scores))
        atomic_write(out / "table.md", table)
    return table


def check_splits(source: str, splits: dict[str, list[Task]]) -> None:
    """Raise UserError where the tasks cannot be compared in every mode."""
    if not any(splits.values()):
        raise UserError(f"{source}: no task has test examples: there is nothing to evaluate")
    for name, tasks in splits.items():
        for task in tasks:
            find_metric(task.metric)
        if len(tasks) == 1:
            raise UserError(f"{source}: {tasks[0].name} is the one {name} task: a misaligned adapter takes another one")


def score_tasks(
    model: Model, llm: LLM, tasks: Sequence[Task], mode: str, draw: int, examples: int, tasks_per_batch: int = 8
) -> list[float]:
    """The mean metric of each task. Rows of different tasks share a batch, each with its own adapter."""
    texts = [task.held_out_wording(draw) for task in tasks]
    adapters = None
    if mode in (MISALIGNED, ALIGNED):
        adapters = model.generate(misalign(texts) if mode == MISALIGNED else texts)
    instructed = mode == PROMPTED or (mode != BASE and model.config.prompt == "instruction")
    scores = []
    for start in range(0, len(tasks), tasks_per_batch):
        some = slice(start, start + tasks_per_batch)
        instructions = texts[some] if instructed else [None] * len(texts[some])
        batch = None if adapters is None else adapters[some]
        for task, answers in zip(tasks[some], _answer(llm, tasks[some], instructions, batch, examples), strict=True):
            metric = find_metric(task.metric)
            pairs = zip(answers, task.test[:examples], strict=True)
            scores.append(float(np.mean([metric(answer, example.accepted) for answer, example in pairs])))
    return scores


def misalign(texts: Sequence[str]) -> list[str]:
    """The same texts, each in the place of another: passed on along a circle in random order."""
    order = np.random.default_rng(0).permutation(len(texts))
    moved = dict(zip(order, np.roll(order, 1), strict=True))
    return [texts[moved[place]] for place in range(len(texts))]


def _answer(
    llm: LLM, tasks: Sequence[Task], instructions: Sequence[str | None], adapters: Adapter | None, examples: int
) -> list[list[str]]:
    """Greedy answers, each as long as its own task needs, whichever tasks it shares a batch with."""
    prompts = [
        [render(llm.tokenizer, example.input, instruction) for example in task.test[:examples]]
        for task, instruction in zip(tasks, instructions, strict=True)
    ]
    limits = [_answer_limit(llm, task, examples) for task in tasks]
    sampling = Sampling(max_new_tokens=max(limits))
    answers = generate(llm.config, llm.params, prompts, adapter=adapters, sampling=sampling, stop_ids=llm.stop_ids)
    return [
        [str(llm.tokenizer.decode(row[:limit], skip_special_tokens=True)) for row in rows]
        for rows, limit in zip(answers, limits, strict=True)
    ]


def _answer_limit(llm: LLM, task: Task, examples: int) -> int:
    """Room for the task's longest answer and a token more, rounded up so that compilation happens rarely."""
    texts = [text for example in task.test[:examples] for text in (example.output, *example.accepted)]
    longest = max(len(llm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    return -(-(longest + 1) // 8) * 8


def markdown(scores: Sequence[Score]) -> str:
    """Rows: splits. Cells: the mean over tasks in percent, plus or minus the standard deviation over draws."""
    lines = ["| tasks | " + " | ".join(MODES) + " |", "|---" * (len(MODES) + 1) + "|"]
    for split in dict.fromkeys(score.split for score in scores):
        cells = []
        for mode in MODES:
            found = [score for score in scores if (score.split, score.mode) == (split, mode)]
            by_draw = [np.mean([s.score for s in found if s.draw == draw]) for draw in sorted({s.draw for s in found})]
            cells.append(f"{100 * np.mean(by_draw):.1f} ± {100 * np.std(by_draw):.1f}")
        count = len({score.task for score in scores if score.split == split})
        lines.append(f"| {split} ({count}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
