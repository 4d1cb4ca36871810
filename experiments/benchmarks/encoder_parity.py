"""Is z in JAX that of sentence-transformers, and how fast is each?

Command: python -m experiments.benchmarks.encoder_parity         (8 minutes on 2 cores; 91 MB the first time)
Answer:  the same to the rounding of float32, with the published adapter and without (results/encoder_parity)

1,000 descriptions of the family of tasks, and the same ones repeated up to forty times, most of them longer than the
256 tokens that MiniLM reads. Both encoders in float32 on the CPU in this process, one after the other in each round.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.tools.results import RESULTS, write
from t2l_jax.data.family.phrasing import descriptions
from t2l_jax.data.family.split import combinations
from t2l_jax.encoder import SHORT_NAMES, Encoder
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.sentence_transformers import SentenceEncoder
from t2l_jax.io.locations import resolve
from t2l_jax.io.published import ENCODER_FOLDER, model_folder


@dataclass(frozen=True)
class EncoderParity:
    """Compare embeddings and speed."""

    model: str = SHORT_NAMES["minilm"]
    texts: int = 1000
    long: int = 1000
    """How many of them are repeated to texts that are too long."""
    rounds: int = 5
    out: Path = RESULTS / "encoder_parity"


def compare(name: str, ours: Encoder, theirs: Encoder, texts: list[str]) -> dict[str, Any]:
    """A row of the first table. The scale of z is 1: the mean of its squares."""
    z, other = ours.embed(texts), theirs.embed(texts)
    cosines = np.sum(z.astype(np.float64) * other, -1) / np.linalg.norm(z, axis=-1) / np.linalg.norm(other, axis=-1)
    return {
        "encoder": name,
        "texts": len(texts),
        "largest difference of z": float(f"{np.abs(z - other).max():.1e}"),
        "1 - smallest cosine": float(f"{max(0.0, 1 - cosines.min()):.1e}"),
    }


def speed(encoder: Encoder, texts: list[str]) -> float:
    """Texts a second."""
    start = time.perf_counter()
    encoder.embed(texts)
    return len(texts) / (time.perf_counter() - start)


def main(args: EncoderParity) -> None:
    """Write the tables."""
    texts = [text for combination in combinations()["train"] for text in descriptions(combination, 1)][::3][
        : args.texts
    ]
    long = [f"{text} " * (1 + index % 40) for index, text in enumerate(texts[: args.long])]
    files, rows = resolve(args.model), []
    for adapter in (None, model_folder(None) / ENCODER_FOLDER):
        name = files.path.parent.name if adapter is None else "with the published adapter"
        ours, theirs = FlaxEncoder.load(files, adapter=adapter), SentenceEncoder.load(files, adapter=adapter)
        rows += [compare(f"{name}, {kind}", ours, theirs, some) for kind, some in (("short", texts), ("long", long))]
    rates: dict[str, list[float]] = {"JAX": [], "sentence-transformers": []}
    for _ in range(args.rounds):
        rates["JAX"].append(speed(ours, texts))
        rates["sentence-transformers"].append(speed(theirs, texts))
    theirs_median = statistics.median(rates["sentence-transformers"])
    speeds = [
        {
            "run by": name,
            "descriptions a second": round(statistics.median(found)),
            "slowest of the rounds": round(min(found)),
            "fastest": round(max(found)),
            "ratio": round(statistics.median(found) / theirs_median, 2),
        }
        for name, found in rates.items()
    ]
    write(args.out, {"Agreement": rows, "Speed": speeds}, [f"median of {args.rounds} rounds, one after the other"])


if __name__ == "__main__":
    main(tyro.cli(EncoderParity))
