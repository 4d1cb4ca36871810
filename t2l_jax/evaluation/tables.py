"""The comparison that says whether a description became a working adapter.

Every task is answered greedily in four modes: by the base model, by the base model with the description in the prompt,
through the adapter written from the description (aligned), and through one written from another task's description
(misaligned). Axes: T tasks of a batch, R examples of a task.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from t2l_jax.data.prompts import render
from t2l_jax.data.tasks import Task, spread
from t2l_jax.evaluation.metrics import METRICS
from t2l_jax.generation import Sampling, generate
from t2l_jax.io.files import atomic_write
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter
from t2l_jax.model import Model
from t2l_jax.recipe import read_tasks
from t2l_jax.training import progress_bar

TASKS_PER_BATCH = 8
MODES = ("base", "base + description", "misaligned adapter", "aligned adapter")


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
    """
    llm = model.load_base()
    splits = {
        name: spread(tasks, max_tasks) for name, tasks in zip(("seen", "unseen"), read_tasks(source), strict=True)
    }
    runs = [(name, draw) for name, tasks in splits.items() if tasks for draw in range(draws)]
    scores: list[Score] = []
    with progress_bar() as progress:
        bar = progress.add_task("evaluating", total=len(runs) * len(MODES), rate="")
        for name, draw in runs:
            for mode in MODES:
                if mode == "base" and draw > 0:  # no description in it: nothing to draw
                    scores += [Score(name, s.task, mode, draw, s.score) for s in scores if _is_first(s, name)]
                else:
                    scores += score_tasks(model, llm, splits[name], mode, draw, examples, name)
                progress.advance(bar)
    table = markdown(scores)
    if out is not None:
        atomic_write(out / "scores.jsonl", "".join(json.dumps(asdict(score)) + "\n" for score in scores))
        atomic_write(out / "table.md", table)
    return table


def score_tasks(
    model: Model, llm: LLM, tasks: Sequence[Task], mode: str, draw: int, examples: int, split: str
) -> Iterator[Score]:
    """One score per task. Rows of different tasks share a batch, each with its own adapter."""
    texts = [task.held_out_wording(draw) for task in tasks]
    adapters = None
    if mode in ("aligned adapter", "misaligned adapter"):
        source = texts if mode == "aligned adapter" else np.roll(texts, 1 + len(texts) // 3).tolist()
        adapters = model.generate(source)
    for start in range(0, len(tasks), TASKS_PER_BATCH):
        some = slice(start, start + TASKS_PER_BATCH)
        instructed = mode == "base + description" or (mode != "base" and model.config.prompt == "instruction")
        instructions = texts[some] if instructed else [None] * len(texts[some])
        batch = None if adapters is None else adapters[some]
        for task, answers in zip(tasks[some], _answer(llm, tasks[some], instructions, batch, examples), strict=True):
            metric = METRICS[task.metric]
            pairs = zip(answers, task.test[:examples], strict=True)
            yield Score(split, task.name, mode, draw, float(np.mean([metric(a, e.accepted) for a, e in pairs])))


def _answer(
    llm: LLM, tasks: Sequence[Task], instructions: Sequence[str | None], adapters: Adapter | None, examples: int
) -> list[list[str]]:
    prompts = [
        [render(llm.tokenizer, example.input, instruction) for example in task.test[:examples]]
        for task, instruction in zip(tasks, instructions, strict=True)
    ]
    longest = max(len(llm.tokenizer(e.output)["input_ids"]) for task in tasks for e in task.test[:examples])
    sampling = Sampling(max_new_tokens=-(-(longest + 1) // 8) * 8)
    stop = [llm.tokenizer.eos_token_id]
    rows = generate(llm.config, llm.params, prompts, adapter=adapters, sampling=sampling, stop_ids=stop)
    return [llm.tokenizer.batch_decode(row, skip_special_tokens=True) for row in rows]


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


def _is_first(score: Score, split: str) -> bool:
    return (score.split, score.mode, score.draw) == (split, "base", 0)
