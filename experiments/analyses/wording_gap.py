"""What does a wording cost: answers through one training wording, one unseen one, and the mean z of 16 of each?

Command: python -m experiments.analyses.wording_gap --alphas 16 14.4 13.6 12.8 11.2         (5 minutes on 2 cores)
Answer:  one unseen wording costs some ten points, most of which a mean of 16 unseen wordings gives back; cross-entropy
         is lowest at an alpha of 13.6 (results/wording_gap)

Of some tasks of the family, evenly drawn: cross-entropy and share of right answers, each token given the right ones
before it, and the squared distance of z, averaged over its elements, from the mean z of 16 training wordings.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import t2l_jax
from experiments.tools.batches import batches_of, packed_tasks
from experiments.tools.results import RESULTS, write
from t2l_jax.data import family
from t2l_jax.data.family import phrasing
from t2l_jax.data.family.split import combinations
from t2l_jax.data.tasks import evenly
from t2l_jax.decoder import Decoder
from t2l_jax.io.base import load_base
from t2l_jax.io.files import cache_folder
from t2l_jax.training.objectives import Sft
from t2l_jax.training.step import make_validation
from t2l_jax.training.trainees import TextHypernetwork

WORDINGS = 16
LENGTH = 64  # tokens of a row
TOGETHER = 24  # tasks of a batch


@dataclass(frozen=True)
class WordingGap:
    """Compare wordings under hypernetworks."""

    models: tuple[str, ...] = ("smollm2-family",)
    tasks: int = 96
    """Of each split; a multiple of 24."""
    alphas: tuple[float, ...] = ()
    """The adapters' alpha. Default: each model's own."""
    out: Path = RESULTS / "wording_gap"


def unit(z: np.ndarray) -> np.ndarray:
    """Of length sqrt(d), as embeddings are."""
    return z / np.linalg.norm(z, axis=-1, keepdims=True) * np.sqrt(z.shape[-1])


def measure(source: str, split: str, count: int, alpha: float | None) -> list[dict[str, Any]]:
    """A row for each kind of z."""
    model = t2l_jax.load(source)
    config, base = load_base(model.base)
    spec = model.config.lora if alpha is None else replace(model.config.lora, alpha=alpha)
    objective = Sft(base, Decoder(config))
    validate = make_validation(TextHypernetwork(model.config.hypernet, spec))
    some = evenly(combinations()[split], count)
    tasks = [family.build_task(member, 64, 0, "train") for member in some]
    packed = packed_tasks([(task.train, ()) for task in tasks], model.config.base, 1, LENGTH)
    constants = {name: value for name, value in model.variables.items() if name != "params"}
    found = {}
    for side, held_out in (("training", False), ("unseen", True)):
        texts = [text for member in some for text in phrasing.descriptions(member, WORDINGS, held_out)]
        z = model.encoder.embed(texts, cache_folder() / "embeddings").reshape(count, WORDINGS, -1)
        found |= {f"one {side} wording": z[:, 0], f"mean of {WORDINGS} {side} wordings": z.mean(1)}
    centre = found[f"mean of {WORDINGS} training wordings"]
    rows = []
    for name, z in found.items():
        scores = []
        for _, _, batch in batches_of(packed, unit(z), TOGETHER, LENGTH):
            metrics = validate(model.variables["params"], constants, objective, batch)
            scores.append((float(metrics["cross_entropy"]), float(metrics["exact"])))
        entropy, exact = np.mean(scores, axis=0)
        rows.append(
            {
                "tasks": split,
                "z": name,
                "cross-entropy": round(float(entropy), 3),
                "exact, %": round(100 * float(exact), 1),
                "distance": round(float(np.square(z - centre).mean()), 3),
            }
        )
    return rows


def main(args: WordingGap) -> None:
    """Write a table for each model and alpha."""
    if args.tasks < TOGETHER or args.tasks % TOGETHER:
        raise SystemExit(f"--tasks is {args.tasks}: make it a multiple of {TOGETHER}")
    tables: dict[str, list[dict[str, Any]]] = {}
    for source, alpha in product(args.models, args.alphas or (None,)):
        name = source if alpha is None else f"{source}, alpha {alpha:g}"
        tables[name] = [
            row for split in ("train", "unseen combinations") for row in measure(source, split, args.tasks, alpha)
        ]
    write(args.out, tables)


if __name__ == "__main__":
    main(tyro.cli(WordingGap))
