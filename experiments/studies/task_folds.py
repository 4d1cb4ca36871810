"""Over tasks, does an adapter from a description help with real tasks that were never trained on?

Command: python -m experiments.studies.task_folds plan --tasks FOLDER --registry FILE
         prints all commands (9 minutes of an H200 for the six runs side by side, two hours of 2 CPU cores for the rest)
Answer:  yes, where answers are written: more than another task's adapter and than one LoRA for all tasks; where answers
         are labels nothing can be told (results/task_folds)

132 real training tasks are dealt out to three folds. For each fold a hypernetwork and a multi-task LoRA learn from the
other two folds and from the family, on the same rows in the same order, and answer for the fold's tasks, whose
descriptions and examples they have not read; nor has the text encoder. Every task is unseen once.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from experiments.tools import results
from t2l_jax.data.tasks import load_tasks
from t2l_jax.evaluation import report
from t2l_jax.evaluation.bootstrap import REPLICATES
from t2l_jax.evaluation.store import read_predictions
from t2l_jax.io.files import atomic_folder, atomic_write, read_json
from t2l_jax.io.yaml_file import read_yaml

HELD_OUT = "held-out tasks"
WITH_LABELS, WRITTEN = "tasks answered by a label", "tasks answered in writing"
# Several tasks have one of these in their names; every other task stands for its own data set.
DATA_SET = re.compile(
    "mctaco|cosmosqa|drop_|winogrande|qasc|multirc|ropes|quoref|scan_|stereoset|jeopardy|detoxifying|odd-man-out|tomqa|"
    "sciq|squad|svamp|piqa|boolq|wic|yelp|commonsenseqa|cola|translation|essential_terms"
)

FOLDS = 3
ENCODER = """
python -m experiments.recipes.wording_encoder --registry {registry} --out runs/registry1 --steps 300 --real-share 0 \\
    --registry-share 0.5
python -m experiments.recipes.wording_encoder --registry {registry} --out runs/registry2 --steps 600 --real-share 0 \\
    --registry-share 0.5 --init-from runs/registry1 --towards runs/registry1 --wordings 4 --learning-rate 1e-3
python -m experiments.studies.task_folds deal --tasks {tasks} --out runs/folds
"""
OPTIONS = (
    "--tasks family runs/folds/{fold} --task-weights 1 1 --selection.wordings 8 --instruction-share 0 --compute.remat "
    "projections --steps 1300 --seed 17 --validate-every 1300 --checkpoint-every 1300"
)
FOLD = """
t2l train experiments/recipes/smollm2_family.py --out runs/hyper{fold} --encoder runs/registry2 {options}
t2l train experiments/recipes/multitask.py --out runs/multi{fold} {options}
t2l publish runs/hyper{fold} --encoder runs/registry2 --alpha 13.6 --out runs/published{fold}
t2l evaluate runs/published{fold} --tasks runs/folds/{fold} --splits 'unseen tasks' --examples 10 --wordings 3 \\
    --methods multitask misaligned aligned --multitask runs/multi{fold}/adapters --out runs/fold{fold}
t2l evaluate runs/published{fold} --tasks runs/folds/{fold} --splits 'unseen tasks' --examples 10 --wordings 1 \\
    --methods base description few-shot --out runs/base{fold}
"""


@dataclass(frozen=True)
class Plan:
    """Print the commands of the study in order."""

    tasks: str
    """Folder of real tasks."""
    registry: str
    """The original's registry, one task a line (gzip)."""

    def run(self) -> None:
        """Print them."""
        print(ENCODER.strip().format(tasks=self.tasks, registry=self.registry))
        for fold in range(FOLDS):
            print(FOLD.strip().format(fold=fold, options=OPTIONS.format(fold=fold)))
        print("python -m experiments.studies.task_folds pool runs/fold? runs/base?")


@dataclass(frozen=True)
class Deal:
    """Write a folder of task folders for each fold, in which the fold's tasks are marked as not to be trained on."""

    tasks: Path
    """Folder of real tasks, each in a folder of its name; those of `use: test` are left out."""
    out: Path
    """Folder to write: 0/, 1/ and so on. The examples in it are links to the originals."""
    folds: int = FOLDS
    seed: int = 0

    def run(self) -> None:
        """Deal the tasks out."""
        if self.folds < 2:
            raise SystemExit("--folds must be at least 2: with one, nothing is left to train on")
        names = sorted(task.name for task in load_tasks(self.tasks) if task.use == "train" and task.train and task.test)
        order = np.random.default_rng(self.seed).permutation(len(names))
        fold_of = {names[place]: number % self.folds for number, place in enumerate(order)}
        with atomic_folder(self.out) as partial:
            for fold in range(self.folds):
                for name in names:
                    self._write(self.tasks / name, partial / str(fold) / name, held_out=fold_of[name] == fold)
        print(f"{len(names)} tasks in {self.folds} folds")

    @staticmethod
    def _write(source: Path, target: Path, held_out: bool) -> None:
        fields = read_yaml(source / "task.yaml") | {"use": "test" if held_out else "train"}
        target.mkdir(parents=True)
        (target / "task.yaml").write_text(yaml.safe_dump(fields, allow_unicode=True, sort_keys=False))
        for file in ("train.jsonl", "test.jsonl"):
            (target / file).symlink_to((source / file).resolve())


@dataclass(frozen=True)
class Pool:
    """Write one table of the evaluations of all folds."""

    evaluations: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that `t2l evaluate --prompt instance` has written, of one fold each or of other methods."""
    out: Path = results.RESULTS / "task_folds"

    def run(self) -> None:
        """Gather the answers and tabulate them as `t2l evaluate` does, and what it does not: by data set."""
        if not self.evaluations:
            raise SystemExit("name the folders of the evaluations")
        cells: report.Cells = {}
        metrics: dict[str, str] = {}
        commonest: dict[str, float] = {}
        notes: list[str] = []
        for folder in self.evaluations:
            table = read_json(folder / report.TABLE_FILE)
            if table["settings"]["prompt"] != "instance":
                raise SystemExit(f"{folder}: was not evaluated with --prompt instance")
            metrics |= {entry["task"]: entry["metric"] for entry in table["entries"] if entry["task"]}
            found: report.Cells = {}
            for record in read_predictions(folder).values():
                kind = WITH_LABELS if metrics[record["task"]] == "label accuracy" else WRITTEN
                for split in (HELD_OUT, kind):
                    cell = found.setdefault(("instance", split, record["task"], record["method"]), {})
                    cell[record["wording"], record["example"]] = record["score"]
            if twice := found.keys() & cells.keys():
                raise SystemExit(f"{folder}: another folder has answers of {min(twice)[3]} for {min(twice)[2]}, too")
            cells |= found
            notes += table["notes"]
            commonest |= commonest_label(table["settings"], metrics)
        scores = report.gather(cells)
        lines = [line for line in report.entries(scores, metrics) if not line.task or line.split == HELD_OUT]
        notes.append(f"The commonest training label of each task in {len(commonest)} gets {mean(commonest):.1f}.")
        notes, over_sets = list(dict.fromkeys(notes)), by_data_set(scores)
        data = {
            **results.provenance(),
            "notes": notes,
            "entries": [vars(line) for line in lines],
            "over data sets": over_sets,
        }
        atomic_write(self.out / results.TABLE_JSON, json.dumps(data, indent=1) + "\n")
        over = f"\n## Differences over data sets\n\n{results.markdown(over_sets)}"
        atomic_write(self.out / results.TABLE_MD, report.markdown(lines, notes) + over)
        print(report.markdown(lines, notes, single=False) + over)


def commonest_label(settings: dict[str, Any], metrics: dict[str, str]) -> dict[str, float]:
    """Of the tasks of an evaluation that are answered by a label, what their commonest one gets, in percent."""
    names = {name for own in settings["task_names"].values() for name in own if metrics[name] == "label accuracy"}
    found = {}
    for task in load_tasks(settings["tasks"]):
        if task.name in names:
            label = Counter(example.output for example in task.train).most_common(1)[0][0]
            found[task.name] = 100 * float(np.mean([label in e.accepted for e in task.test[: settings["examples"]]]))
    return found


def mean(values: dict[str, float]) -> float:
    """Of the values."""
    return float(np.mean(list(values.values())))


def by_data_set(scores: report.Scores) -> list[dict[str, Any]]:
    """The differences again, with intervals over data sets, and on how many tasks an aligned adapter is ahead.

    Of several tasks on one data set, all are drawn or none is; every task counts alike.
    """
    rows = []
    for _, minus in report.DIFFERENCES:
        for split in (HELD_OUT, WITH_LABELS, WRITTEN):
            pairs = {
                task: 100 * float(own.mean() - scores[mode, part, task, minus].mean())
                for (mode, part, task, method), own in scores.items()
                if part == split and method == "aligned" and (mode, part, task, minus) in scores
            }
            groups: dict[str, list[float]] = {}
            for task, points in pairs.items():
                known = DATA_SET.search(task)
                groups.setdefault(known[0] if known else task, []).append(points)
            low, high = interval_over_groups(list(groups.values()))
            ahead, behind = (sum(sign * points > 1e-9 for points in pairs.values()) for sign in (1, -1))
            rows.append(
                {
                    "aligned adapter -": report.METHODS[minus].title,
                    "tasks": split,
                    "count": len(pairs),
                    "data sets": len(groups),
                    "points": round(mean(pairs), 1),
                    "low": round(low, 1),
                    "high": round(high, 1),
                    "ahead": ahead,
                    "behind": behind,
                }
            )
    return rows


def interval_over_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95% bootstrap interval of the mean over all members, where whole groups are drawn."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(REPLICATES, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"plan": Plan, "deal": Deal, "pool": Pool}).run()
