"""How far is the z of one description from the mean of its task, for tasks that no text encoder has read?

Command: python -m experiments.analyses.wording_distance --tasks FOLDER --registry FILE --towards runs/packaged/encoder5
             --encoders runs/packaged/encoder5 runs/packaged/encoder10                      (a minute on 2 cores)
Answer:  reading the registry's descriptions brings its held-out tasks two fifths nearer, other real tasks a little
         (results/wording_distance)

Squared distance, averaged over z's elements (whose squares have mean 1), between the z of unseen wordings and the mean
of 16 others under the encoder `towards`: what wording_encoder.py makes small. `nearest`: how often that mean is nearer
than any other task's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.recipes.wording_encoder import Described, WordingEncoder, other_tasks
from experiments.tools.results import RESULTS, write
from t2l_jax.data.tasks import load_tasks, named_like
from t2l_jax.encoder import load_encoder
from t2l_jax.io.files import cache_folder

WORDINGS, UNSEEN = 16, 8


@dataclass(frozen=True)
class WordingDistance:
    """Compare text encoders."""

    tasks: Path
    """A folder of real tasks."""
    registry: Path
    """The original's registry, one task a line (gzip)."""
    towards: str
    encoders: tuple[str, ...]
    only: tuple[str, ...] = ("sni_*", "ni_*", "ii_*")
    """Of the unseen real tasks."""
    out: Path = RESULTS / "wording_distance"


def unseen_real(folder: Path, only: tuple[str, ...]) -> list[tuple[Described, tuple[str, ...]]]:
    """Unseen tasks, each with wordings beside its first WORDINGS, or with some of these where there are no others."""
    tasks = named_like([task for task in load_tasks(folder) if task.use == "test"], only)
    return [
        (
            Described(task.name, task.descriptions),
            tuple(task.held_out_wording(draw) for draw in range(min(UNSEEN, len(task.descriptions)))),
        )
        for task in tasks
    ]


def main(args: WordingDistance) -> None:
    """Write a row for each encoder and kind of task."""
    rows = []
    _, _, held_out = other_tasks(WordingEncoder(out=Path(), registry=args.registry))
    kinds = {
        "held-out tasks of the registry": [(task, task.descriptions[-UNSEEN:]) for task in held_out],
        "unseen real tasks": unseen_real(args.tasks, args.only),
    }
    cache = cache_folder() / "embeddings"
    towards = load_encoder(args.towards)
    for source in args.encoders:
        encoder = load_encoder(source)
        for kind, tasks in kinds.items():
            means = np.stack([towards.embed(task.descriptions[:WORDINGS], cache).mean(0) for task, _ in tasks])
            found = [encoder.embed(texts, cache) for _, texts in tasks]
            far = np.mean([np.square(z - mean).mean() for z, mean in zip(found, means, strict=True)])
            directions = means / np.linalg.norm(means, axis=1, keepdims=True)
            nearest = np.mean([np.mean(np.argmax(z @ directions.T, 1) == place) for place, z in enumerate(found)])
            row = {"encoder": Path(source).name, "tasks": kind, "count": len(tasks)}
            rows.append(row | {"distance": round(float(far), 3), "nearest, %": round(100 * float(nearest), 1)})
    write(args.out, {"Distance to the mean of the task": rows})


if __name__ == "__main__":
    main(tyro.cli(WordingDistance))
