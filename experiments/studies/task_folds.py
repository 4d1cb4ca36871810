"""Over tasks, does an adapter from a description help with tasks that were never trained on? Real tasks, in folds.

Fifteen unseen real tasks cannot tell: even the means of misaligned adapters and of the tasks' own LoRAs have intervals
that overlap there (results/smollm2_family/real.md). So 132 real training tasks are dealt out to three folds. For each
fold a hypernetwork and a multi-task LoRA learn from the other two folds and from the family, and answer for the fold's
tasks, whose descriptions and examples they have not read; nor has the text encoder. Every task is unseen once.

Commands: python experiments/wording_encoder.py --registry FILE --out runs/registry1 --steps 300 --real-share 0
              --registry-share 0.5
          the same to runs/registry2 with --start runs/registry1 --towards runs/registry1 --wordings 4 --steps 600
              --learning-rate 1e-3                                                        (20 minutes on 2 CPU cores)
          python experiments/task_folds.py deal --tasks FOLDER --out runs/folds
          and for each K of 0, 1, 2, on an H200:
          t2l train experiments/smollm2_family.py --out runs/hyperK --encoder runs/registry2 OPTIONS
          t2l train experiments/multitask.py --out runs/multiK OPTIONS
              where OPTIONS are --tasks family runs/folds/K --task-weights 1 1 --choice.wordings 8
              --instruction-share 0 --compute.remat --steps 1300 --seed 17 --validate-every 1300 --checkpoint-every 1300
          in runs/hyperK/model/config.json a lora.alpha of 13.6 in place of 16, and
          t2l evaluate runs/hyperK/model --tasks runs/folds/K --splits 'unseen tasks' --examples 10 --wordings 3
              --methods multitask misaligned aligned --multitask runs/multiK/adapters --out runs/foldK
          and the same with --wordings 1 --methods base description few-shot --out runs/baseK
              (in fold 2 without few-shot, which takes 20 minutes a fold)
          python experiments/task_folds.py pool runs/fold? runs/base? --out table.md
Time:     the six runs side by side 9 minutes on one H200 (41,000 tokens a second each), the evaluation an hour and a
          half of 2 CPU cores with AMX
Result:   aligned adapters 23.2 [19.6, 26.8], multi-task LoRAs 20.1 [16.6, 23.5], misaligned adapters 16.9 [13.5, 20.5];
          task by task 3.1 [0.6, 5.6] more than the multi-task LoRA (over data sets [1.1, 5.1]) and 6.2 [3.1, 9.5] more
          than misaligned. That is of the 88 tasks that are answered in writing: 13.9 [10.8, 17.1], 10.0 [7.2, 13.1],
          6.1 [3.9, 8.5]; on the 44 answered by a label 41.7, 40.2 and 38.7, where the commonest label gets 45.0. Base
          model with description 18.9; with three examples, in folds 0 and 1 only, 24.4, aligned adapters there 24.4.
          Cross-entropy of the held-out tasks, by fold, 2.92, 2.97, 3.09 with the hypernetwork (at an alpha of 16) and
          3.01, 3.47, 3.58 with the multi-task LoRA
          (results/task_folds.md)

The six runs have the same seed: of a fold, both learn from the same 21 million tokens in the same order, half of them
of the family, which a LoRA for all tasks cannot know apart with the instance alone (the hypernetwork's matched
baseline; one for real tasks alone was not trained). Learning rates are those of the two recipes. That adapters are used
at an alpha of 13.6 was settled before, on other tasks. The text encoder has read the family's descriptions and those of
363 tasks of the registry, none of which is a task of FOLDER, though some ask other questions about the same data. The
tasks are dealt out by chance, as in FOLDER itself: 90 of 132 have a task of the same data set among those trained on.
Of a held-out task's first ten questions none stands with its answer among what was trained on; of three tasks some
stand there with another (ii_synonyms, ii_translation_en_es, ni_task031; counted by a script that was not kept). Three
more of FOLDER's training tasks are no JSON and left out.

The machine with the GPU had neither MiniLM nor the tasks: tokens and z were read here and sent there, z in float16, by
a script that was not kept. The hypernetworks were stopped by SIGTERM after 1,090, 1,144 and 1,092 steps, validated, and
went on from there to the end.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml

from t2l_jax.data.tasks import load_tasks, read_yaml
from t2l_jax.evaluation import report
from t2l_jax.evaluation.bootstrap import REPLICATES
from t2l_jax.evaluation.store import read_predictions
from t2l_jax.io.files import atomic_folder, atomic_write, read_json

HELD_OUT = "held-out tasks"
WITH_LABELS, WRITTEN = "tasks answered by a label", "tasks answered in writing"
# Several tasks have one of these in their names; every other task stands for its own data set.
DATA_SET = re.compile(
    "mctaco|cosmosqa|drop_|winogrande|qasc|multirc|ropes|quoref|scan_|stereoset|jeopardy|detoxifying|odd-man-out|tomqa|"
    "sciq|squad|svamp|piqa|boolq|wic|yelp|commonsenseqa|cola|translation|essential_terms"
)


@dataclass(frozen=True)
class Deal:
    """Write a folder of task folders for each fold, in which the fold's tasks are marked as not to be trained on."""

    tasks: Path
    """Folder of real tasks, each in a folder of its name; those of `use: test` are left out."""
    out: Path
    """Folder to write: 0/, 1/ and so on. The examples in it are links to the originals."""
    folds: int = 3
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
    out: Path
    """Markdown file to write."""

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
        text, over_sets = report.markdown(lines, list(dict.fromkeys(notes))), by_data_set(scores)
        atomic_write(self.out, text + over_sets)
        print(text[: text.index("## Task by task")] + over_sets)


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


def by_data_set(scores: report.Scores) -> str:
    """The differences again, with intervals over data sets, and on how many tasks an aligned adapter is ahead.

    Of several tasks on one data set, all are drawn or none is; every task counts alike.
    """
    lines = [
        "\n## Differences over data sets\n",
        "| aligned adapter - | tasks | points | interval over data sets | ahead | behind |",
        "|---|---|---|---|---|---|",
    ]
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
            title = report.METHODS[minus].title
            lines.append(
                f"| {title} | {split} ({len(pairs)}, of {len(groups)} data sets) | {mean(pairs):.1f} | "
                f"[{low:.1f}, {high:.1f}] | {ahead} | {behind} |"
            )
    return "\n".join(lines) + "\n"


def interval_over_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95% bootstrap interval of the mean over all members, where whole groups are drawn."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(REPLICATES, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))
    return float(low), float(high)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"deal": Deal, "pool": Pool}).run()
