"""How many answers a second does an evaluation give, and are they the same at another batch size?

Command: python -m experiments.benchmarks.evaluation_speed                                      (a minute on 2 cores)
Answer:  the same answers at both batch sizes; the larger batch is faster (results/evaluation_speed)

Eight training tasks of the word family, four examples each, with the base model, misaligned and aligned adapters of the
packaged hypernetwork. Loading and compiling count.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

import t2l_jax
from experiments.tools.results import RESULTS, write
from t2l_jax.evaluation.evaluate import evaluate
from t2l_jax.evaluation.plan import EvaluationConfig

METHODS = ("base", "misaligned", "aligned")


@dataclass(frozen=True)
class EvaluationSpeed:
    """Evaluate the same tasks at two batch sizes."""

    out: Path = RESULTS / "evaluation_speed"


def main(args: EvaluationSpeed) -> None:
    """Time both and compare every answer."""
    model = t2l_jax.load()
    found, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for batch_tokens in (256, 2048):
            config = EvaluationConfig(
                splits=("train",), max_tasks=8, examples=4, wordings=1, methods=METHODS, batch_tokens=batch_tokens
            )
            out, start = Path(folder) / str(batch_tokens), time.perf_counter()
            evaluate(model, config, out)
            seconds = time.perf_counter() - start
            lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
            found.append({line["key"]: (line["prediction"], line["score"]) for line in lines})
            rate = round(len(lines) / seconds, 1)
            rows.append({"prompt tokens a batch": batch_tokens, "answers": len(lines), "answers/s": rate})
    assert found[0] == found[1], "answers differ"
    write(args.out, {"Speed": rows}, ["The answers are the same at both batch sizes."])


if __name__ == "__main__":
    main(tyro.cli(EvaluationSpeed))
