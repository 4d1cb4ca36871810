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
          t2l evaluate runs/hyperK/model --tasks runs/folds/K --splits 'unseen tasks' --examples EXAMPLES --wordings 3
              --methods multitask misaligned aligned --multitask runs/multiK/adapters --out runs/foldK
          python experiments/task_folds.py pool runs/fold0 runs/fold1 runs/fold2 --out table.md
Time:     the six runs side by side 9 minutes on one H200 (41,000 tokens a second each), the evaluation TIME
Result:   RESULT
          (results/task_folds.md)

The six runs have the same seed, so that of a fold both learn from the same 21 million tokens in the same order. The
adapters are used at an alpha of 13.6, in config.json, as those of the package are: that was settled before. The tasks
are dealt out by chance, as in FOLDER itself: most have a sibling on the same texts among those trained on.

The machine with the GPU had neither MiniLM nor the tasks: tokens and z were read here and sent there, z in float16, by
a script that was not kept. The hypernetworks were stopped by SIGTERM after 1,090, 1,144 and 1,092 steps and went on
from there to the end.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import yaml

from t2l_jax.data.tasks import load_tasks, read_yaml
from t2l_jax.evaluation import report
from t2l_jax.evaluation.store import read_predictions
from t2l_jax.io.files import atomic_folder, atomic_write, read_json

HELD_OUT = "held-out tasks"


@dataclass(frozen=True)
class Deal:
    """Write a folder of task folders for each fold, in which the fold's tasks are marked as not to be trained on."""

    tasks: Path
    """Folder of real tasks; those of `use: test` are left out."""
    out: Path
    folds: int = 3
    seed: int = 0

    def run(self) -> None:
        """Deal the tasks out. The examples are links to the originals."""
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
    """Folders that `t2l evaluate` has written, of one fold each, all with the same --prompt (not both)."""
    out: Path
    """Markdown file to write."""

    def run(self) -> None:
        """Gather the answers, and tabulate them as `t2l evaluate` does."""
        cells: report.Cells = {}
        metrics: dict[str, str] = {}
        notes: list[str] = []
        for folder in self.evaluations:
            table = read_json(folder / report.TABLE_FILE)
            notes += table["notes"]
            metrics |= {entry["task"]: entry["metric"] for entry in table["entries"] if entry["task"]}
            for record in read_predictions(folder).values():
                cell = cells.setdefault((record["mode"] or table["settings"]["prompt"], HELD_OUT, record["task"], record["method"]), {})
                cell[record["wording"], record["example"]] = record["score"]
        text = report.markdown(report.entries(report.gather(cells), metrics), notes)
        atomic_write(self.out, text)
        print(text[: text.index("## Task by task")])


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"deal": Deal, "pool": Pool}).run()
