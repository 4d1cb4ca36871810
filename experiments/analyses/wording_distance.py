"""How far is the z of one description from the mean of its task, for tasks that no text encoder has read?

Command: python experiments/wording_distance.py --tasks FOLDER --registry FILE --towards runs/encoder5
         --encoders runs/encoder5 runs/encoder7 runs/encoder8 runs/encoder9 runs/encoder10     (a minute on 2 CPU cores)
Result:  descriptions of 20 held-out tasks of the registry are 0.174 from the means with encoder7, 0.109 with encoder8,
         0.106 with encoder9 and 0.103 with encoder10; those of 15 unseen real tasks 0.161, 0.149, 0.152 and 0.148
         (results/wording_distance.txt)

Squared distance, averaged over z's elements (whose squares have the mean 1), between the z of unseen wordings and the
mean of 16 others under the encoder `towards`: what experiments/wording_encoder.py makes small for the tasks that it
reads. `nearest`: how often that mean is nearer than any other task's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from wording_encoder import Described, WordingEncoder, other_tasks

from t2l_jax.data.tasks import load_tasks, named_like
from t2l_jax.encoder import load_encoder
from t2l_jax.io.locations import cache_folder

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
    """Print a line for each encoder and kind of task."""
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
            print(f"{source:20} {kind:32} ({len(tasks)}) distance {far:.3f}, nearest {nearest:6.1%}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(WordingDistance))
