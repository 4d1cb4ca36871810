"""Answers a second of an evaluation, and the same answers at two batch sizes, on SmolLM2 and the packaged model.

    python experiments/evaluation_speed.py

Takes two minutes on two cores, compilation included. Result: see results/evaluation_speed.txt.
"""

import json
import tempfile
import time
from pathlib import Path

import jax

import t2l_jax
from t2l_jax.evaluation.evaluate import evaluate
from t2l_jax.evaluation.plan import EvaluationConfig

METHODS = ("base", "misaligned", "aligned")


def main() -> None:
    """Evaluate the same few tasks at two batch sizes and compare every answer."""
    model = t2l_jax.load()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for batch_tokens in (256, 2048):
            config = EvaluationConfig(
                splits=("train",), max_tasks=8, examples=4, wordings=1, methods=METHODS, batch_tokens=batch_tokens
            )
            out, start = Path(folder) / str(batch_tokens), time.perf_counter()
            table = evaluate(model, config, out)
            seconds = time.perf_counter() - start
            lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
            found.append({line["key"]: (line["prediction"], line["score"]) for line in lines})
            rate = len(lines) / seconds
            print(
                f"{batch_tokens} prompt tokens a batch: {len(lines)} answers, {rate:.1f}/s with loading and compiling"
            )
    assert found[0] == found[1], "answers differ"
    print(f"The same {len(found[0])} answers at both batch sizes, on {jax.devices()[0].device_kind}.\n\n{table}")


if __name__ == "__main__":
    main()
