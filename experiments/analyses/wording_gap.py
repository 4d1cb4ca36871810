"""What does a wording cost? Answers through z of a training wording, of an unseen one, and of the mean of 16 of each.

Command: python experiments/wording_gap.py --models FOLDER smollm2-family      (one minute a model on two CPU cores)
         python experiments/wording_gap.py --alphas 16 14.4 13.6 12.8 11.2           (5 minutes)
Result:  of unseen combinations smollm2-family gets 70% right in one unseen wording, 79% in a training wording, 76% from
         the mean of 16 unseen wordings and 80% from that of 16 training ones; at the alpha of 16 that it was trained at
         67%, 80%, 72% and 81%, then with encoder7 65%, 79%, 73% and 80%; after stage 8 61%, 66%, 68% and 69%
         (results/wording_gap.txt)

Of some tasks of the family, evenly drawn: cross-entropy and share of right answers, each token given the right ones
before it, and the squared distance of z, averaged over its elements, from the mean z of 16 training wordings.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import tyro

import t2l_jax
from t2l_jax.data import family
from t2l_jax.data.batches import collate, pack
from t2l_jax.data.encoding import encode_all
from t2l_jax.data.family import phrasing
from t2l_jax.data.family.split import combinations
from t2l_jax.data.tasks import evenly
from t2l_jax.decoder import Decoder
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.locations import cache_folder
from t2l_jax.training.objectives.sft import SftConfig
from t2l_jax.training.producers import HypernetProducer
from t2l_jax.training.step import make_validation

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


def unit(z: np.ndarray) -> np.ndarray:
    """Of length sqrt(d), as embeddings are."""
    return z / np.linalg.norm(z, axis=-1, keepdims=True) * np.sqrt(z.shape[-1])


def measure(source: str, split: str, count: int, alpha: float | None) -> None:
    """Print a line for each kind of z."""
    model = t2l_jax.load(source)
    (config, base), tokenizer = load_base(model.config.base), load_tokenizer(model.config.base)
    spec = model.config.lora if alpha is None else replace(model.config.lora, alpha=alpha)
    producer = HypernetProducer(model.config.hypernet, spec)
    validate = make_validation(producer, Decoder(config), SftConfig())
    some = evenly(combinations()[split], count)
    tasks = [family.build_task(member, 64, 0, "train") for member in some]
    tables = encode_all(tokenizer, [(task.train, ()) for task in tasks], cache_folder() / "tokens")
    packed = [pack(table, np.arange(len(table))[::-1], 1, LENGTH) for table in tables]
    constants = {name: value for name, value in model.variables.items() if name != "params"}
    found = {}
    for side, held_out in (("training", False), ("unseen", True)):
        texts = [text for member in some for text in phrasing.descriptions(member, WORDINGS, held_out)]
        z = model.encoder.embed(texts, cache_folder() / "embeddings").reshape(count, WORDINGS, -1)
        found |= {f"one {side} wording": z[:, 0], f"mean of {WORDINGS} {side} wordings": z.mean(1)}
    centre = found[f"mean of {WORDINGS} training wordings"]
    for name, z in found.items():
        scores = []
        for start in range(0, count, TOGETHER):
            part = slice(start, start + TOGETHER)
            metrics = validate(
                model.variables["params"],
                constants,
                base,
                collate(packed[part], unit(z[part]), np.arange(TOGETHER), LENGTH),
            )
            scores.append((float(metrics["cross_entropy"]), float(metrics["exact"])))
        entropy, exact = np.mean(scores, axis=0)
        print(f"{split:20} {name:30} {entropy:5.3f} {exact:6.1%} {np.square(z - centre).mean():6.3f}", flush=True)


def main(args: WordingGap) -> None:
    """Print a table for each model and alpha."""
    if args.tasks < TOGETHER or args.tasks % TOGETHER:
        raise SystemExit(f"--tasks is {args.tasks}: make it a multiple of {TOGETHER}")
    for source, alpha in product(args.models, args.alphas or (None,)):
        name = source if alpha is None else f"{source}, alpha {alpha:g}"
        print(f"{name}\n{'tasks':20} {'z':30} cross-entropy, exact, distance")
        for split in ("train", "unseen combinations"):
            measure(source, split, args.tasks, alpha)


if __name__ == "__main__":
    main(tyro.cli(WordingGap))
