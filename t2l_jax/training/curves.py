"""Training curves as an image."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2l_jax.io.files import atomic_write

PANELS = (("loss", "cross_entropy"), ("exact",), ("learning_rate",), ("grad_norm",))


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot loss, exact match, learning rate and gradient norm over the steps, for training and validation, as PNG.

    `records` are the records of metrics.jsonl.
    """
    from matplotlib.figure import Figure  # takes half a second: import only when drawing

    figure = Figure(figsize=(11, 7))  # a layout that fits itself takes as long as all else
    for names, axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        keys = sorted({key for record in records for key in record if key.rpartition("/")[2] in names})
        for key in keys:
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            split = "/" in key
            if points:
                axes.plot(*zip(*points, strict=True), label=key, marker="o" if split else None, lw=2 if split else 0.8)
        axes.set(xlabel="step", title=", ".join(names))
        axes.grid(alpha=0.3)
        if keys:
            axes.legend(fontsize=8)
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.07, top=0.95, hspace=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    atomic_write(path, buffer.getvalue())
