"""The table of an evaluation as JSON, markdown, CSV and a plot.

Scores are in percent, averaged over the wordings of an example first. Intervals are 95% bootstrap intervals: for a
split over its tasks and, with the tasks fixed, over their examples; for a task over its examples (see `bootstrap`).
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t2l_jax.evaluation.bootstrap import interval, over_examples, over_tasks
from t2l_jax.evaluation.plan import METHODS
from t2l_jax.io.files import atomic_write

DIFFERENCES = (("aligned", "multitask"), ("aligned", "misaligned"), ("aligned", "random"))
MODE_TITLES = {"instance": "instance only", "instruction": "with instruction", "definition": "with definition"}
SAME = "new examples of the same "
TABLE_FILE = "table.json"


@dataclass(frozen=True)
class Entry:
    """A line of the table: one method on one task or, if `task` is empty, on a split; percent.

    `minus` names the method that is subtracted, example by example. `low` and `high` hold for new tasks of the split
    (for a single task: for new examples of it), `same_low` and `same_high` for new examples of the same tasks. `tasks`
    of the split's `of` tasks are covered: a method may lack inputs for some. `wording_std` is the standard deviation of
    the mean score over wordings.
    """

    mode: str
    split: str
    task: str
    metric: str
    method: str
    minus: str
    mean: float
    low: float
    high: float
    same_low: float
    same_high: float
    wording_std: float
    tasks: int
    of: int
    examples: int


Place = tuple[str, str, str, str]  # mode, split, task, method
Cells = dict[Place, dict[tuple[int, int], float]]  # -> (wording, example) -> score
Scores = dict[Place, np.ndarray]  # -> [wordings, examples]


def gather(cells: Cells) -> Scores:
    """Convert cells to arrays. Each must hold every wording of every example."""
    scores = {}
    for place, cell in cells.items():
        wordings, examples = (1 + max(axis) for axis in zip(*cell, strict=True))
        scores[place] = np.array([[cell[w, e] for e in range(examples)] for w in range(wordings)])
    return scores


def entries(scores: Scores, metrics: dict[str, str]) -> list[Entry]:
    """All lines: for each mode and split the averages, the differences, then each task. `metrics` is by task."""
    lines: list[Entry] = []
    names: dict[tuple[str, str], dict[str, None]] = {}
    for mode, split, task, _ in scores:
        names.setdefault((mode, split), {})[task] = None
    for (mode, split), tasks in names.items():
        by_method = {
            method: {task: scores[mode, split, task, method] for task in tasks if (mode, split, task, method) in scores}
            for method in METHODS
        }
        place = (mode, split, "", "")
        lines += [_entry(*place, m, "", list(own.values()), len(tasks)) for m, own in by_method.items() if own]
        for first, second in DIFFERENCES:
            both = [task for task in by_method[first] if task in by_method[second]]
            pairs = [by_method[first][task].mean(0) - by_method[second][task].mean(0) for task in both]
            if pairs:
                lines.append(_entry(*place, first, second, [pair[None] for pair in pairs], len(tasks)))
        for task in tasks:
            place = (mode, split, task, metrics[task])
            lines += [_entry(*place, m, "", [own[task]], 1) for m, own in by_method.items() if task in own]
    return lines


def _entry(
    mode: str, split: str, task: str, metric: str, method: str, minus: str, arrays: Sequence[np.ndarray], of: int
) -> Entry:
    """Mean and intervals of arrays [wordings, examples], one per task."""
    scores = [100 * array.mean(0) for array in arrays]
    same = interval(scores, over_examples)
    over = same if len(scores) == 1 else interval(scores, over_tasks)
    wordings = max(len(array) for array in arrays)
    by_wording = [np.mean([array[w % len(array)].mean() for array in arrays]) for w in range(wordings)]
    count = sum(array.shape[1] for array in arrays)
    std = 100 * float(np.std(by_wording))
    return Entry(mode, split, task, metric, method, minus, *over, same.low, same.high, std, len(arrays), of, count)


def markdown(lines: Sequence[Entry], notes: Sequence[str], single: bool = True) -> str:
    """The report: tables of splits, differences, tables of tasks if `single`, and the notes."""
    parts = []
    for mode in dict.fromkeys(line.mode for line in lines):
        own = [line for line in lines if line.mode == mode]
        title = MODE_TITLES[mode]
        parts.append(f"## Averages, {title}\n\n" + _table("tasks", [e for e in own if not e.task and not e.minus]))
        differences = [line for line in own if line.minus]
        if differences:
            rows = [
                f"| {name} | {METHODS[e.method].title} - {METHODS[e.minus].title} | {cell} |"
                for e in differences
                for name, cell in ((f"{e.split} ({e.tasks})", _cell(e)), (f"{SAME}{e.split}", _same(e)))
            ]
            head = "| tasks | difference, pairwise | points |\n|---|---|---|\n"
            parts.append(f"## Differences, {title}\n\n" + head + "\n".join(rows) + "\n")
        if single:
            parts.append(f"## Task by task, {title}\n\n" + _table("task", [e for e in own if e.task]))
    parts.append(
        f'Percent, with 95% bootstrap intervals over tasks and, after "{SAME.strip()}", over examples.\n'
        + "".join(f"- {note}\n" for note in notes)
    )
    return "\n".join(parts)


def _table(head: str, lines: Sequence[Entry]) -> str:
    """Rows are splits or tasks, columns are methods; a dash marks a missing score."""
    methods = [name for name in METHODS if any(line.method == name for line in lines)]
    rows: dict[tuple[str, str], dict[str, Entry]] = {}
    for line in lines:
        rows.setdefault((line.split, line.task), {})[line.method] = line
    text = [
        f"| {head} | " + " | ".join(METHODS[name].title for name in methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for (split, task), cells in rows.items():
        first = next(iter(cells.values()))
        name = f"{task} ({split}, {first.metric})" if task else f"{split} ({first.of})"
        text.append(f"| {name} | " + " | ".join(_cell(cells[m]) if m in cells else "-" for m in methods) + " |")
        if not task:
            text.append(
                f"| {SAME}{split} | " + " | ".join(_same(cells[m]) if m in cells else "-" for m in methods) + " |"
            )
    return "\n".join(text) + "\n"


def _cell(line: Entry) -> str:
    part = f" ({line.tasks} of {line.of} tasks)" if line.tasks < line.of else ""
    return f"{line.mean:.1f} [{line.low:.1f}, {line.high:.1f}]{part}"


def _same(line: Entry) -> str:
    return f"[{line.same_low:.1f}, {line.same_high:.1f}]"


def write(folder: Path, lines: Sequence[Entry], notes: Sequence[str], settings: dict[str, Any]) -> None:
    """Write table.md, table.csv, table.json and table.png."""
    atomic_write(folder / "table.md", markdown(lines, notes))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(Entry.__dataclass_fields__)
    writer.writerows(vars(line).values() for line in lines)
    atomic_write(folder / "table.csv", buffer.getvalue())
    data = {"settings": settings, "notes": list(notes), "entries": [vars(line) for line in lines]}
    atomic_write(folder / TABLE_FILE, json.dumps(data, indent=1) + "\n")
    atomic_write(folder / "table.png", picture(lines))


def picture(lines: Sequence[Entry]) -> bytes:
    """Bar plot as PNG: one panel per mode, one group of bars per split, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    averages = [line for line in lines if not line.task and not line.minus]
    modes = list(dict.fromkeys(line.mode for line in averages))
    splits = list(dict.fromkeys(line.split for line in averages))
    methods = [name for name in METHODS if any(line.method == name for line in averages)]
    figure = Figure(figsize=(4 + 2.2 * len(splits), 3.6 * len(modes)), layout="constrained")
    panels = figure.subplots(len(modes), squeeze=False)[:, 0]
    for panel, mode in zip(panels, modes, strict=True):
        for number, method in enumerate(methods):
            own = [line for line in averages if (line.mode, line.method) == (mode, method)]
            places = [splits.index(line.split) + (number - (len(methods) - 1) / 2) * 0.8 / len(methods) for line in own]
            ends = np.array([[line.mean - line.low, line.high - line.mean] for line in own]).T.clip(0)
            means = [line.mean for line in own]
            label = METHODS[method].title
            panel.bar(places, means, 0.8 / len(methods), label=label, color=f"C{number}", yerr=ends, capsize=2)
        panel.set_xticks(range(len(splits)), splits)
        panel.set_ylabel("score (percent)")
        panel.set_title(MODE_TITLES[mode], loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
