"""Are the adapters of similar descriptions similar, and where does each task's adapter lie?

Command: python -m experiments.analyses.adapter_map                                      (half a minute on 2 cores)
Answer:  the nearest adapter is almost always one of the same task's (results/adapter_map)

For some tasks, drawn evenly from the unseen combinations of the family, three unseen wordings each become adapters.
Compared are the cosine similarity of two descriptions' embeddings with that of the changes B A that their adapters
make, over all pairs. The picture shows the changes on their first two principal axes, coloured by kind of instance.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro

import t2l_jax
from experiments.tools.results import RESULTS, write
from t2l_jax.data.sources import read_tasks
from t2l_jax.data.tasks import spread
from t2l_jax.hypernet import Condition
from t2l_jax.lora import Adapter

matplotlib.use("agg")
import matplotlib.pyplot as plt

WORDINGS = 3


@dataclass(frozen=True)
class AdapterMap:
    """Compare adapters with the descriptions that they were written from."""

    model: str | None = None
    """Hypernetwork. Default: the one in the package."""
    tasks: str = "family"
    """`words`, `family`, `gym`, or a folder of tasks."""
    split: str = "unseen combinations"
    most: int = 160
    """Tasks at most."""
    out: Path = RESULTS / "adapter_map"


def gram(adapters: Adapter) -> np.ndarray:
    """Inner products [n, n] of the changes B A of n adapters, without making any: <BA, B'A'> = <BᵀB', AA'ᵀ>."""

    @jax.jit
    def of_module(a: jax.Array, b: jax.Array) -> jax.Array:
        def row(one: tuple[jax.Array, jax.Array]) -> jax.Array:
            mine, other = jnp.einsum("lor,nlos->nlrs", one[1], b), jnp.einsum("lri,nlsi->nlrs", one[0], a)
            return jnp.einsum("nlrs,nlrs->n", mine, other)

        return jax.lax.map(row, (a, b))

    return sum(np.asarray(of_module(weights["a"], weights["b"])) for weights in adapters.weights.values())


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosine similarities from inner products."""
    norms = np.sqrt(np.diag(products))
    return products / norms[:, None] / norms


def main(args: AdapterMap) -> None:
    """Write the comparison and draw the map."""
    model = t2l_jax.load(args.model)
    usable = [task for task in read_tasks(args.tasks)[args.split] if len(task.unseen_descriptions) >= WORDINGS]
    tasks = spread(usable, args.most)
    texts = [task.held_out_wording(draw) for task in tasks for draw in range(WORDINGS)]
    z = model.encoder.embed(texts)
    products = gram(model.adapters(Condition(z=z)))
    by_text, by_weight = cosines(z @ z.T), cosines(products)
    owner = np.repeat(np.arange(len(tasks)), WORDINGS)
    same, above = owner[:, None] == owner, np.triu(np.ones((len(owner),) * 2, bool), 1)
    kinds = [re.split(r"[._]", task.name)[0] for task in tasks]
    kind = np.repeat(np.unique(kinds, return_inverse=True)[1], WORDINGS)
    relatives = (kind[:, None] == kind) & ~same
    rows = []
    for name, pairs in (("one task, two wordings", same), ("one kind of instance", relatives), ("all", ~same)):
        chosen = pairs & above
        text, weight = (round(float(similar[chosen].mean()), 3) for similar in (by_text, by_weight))
        rows.append({"pairs": name, "cosine of descriptions": text, "cosine of adapters": weight})
    chosen = ~same & above
    correlation = np.corrcoef(by_text[chosen], by_weight[chosen])[0, 1]
    nearest = {}
    for name, similar in (("descriptions", by_text), ("adapters", by_weight)):
        found = np.argmax(np.where(np.eye(len(owner), dtype=bool), -np.inf, similar), axis=1)
        nearest[name] = round(100 * float(np.mean(owner[found] == owner)), 1)
    title = f"{len(tasks)} tasks of {args.tasks}, {args.split}, {WORDINGS} unseen wordings each"
    summary = {
        "correlation of the two cosines over different tasks": round(float(correlation), 3),
        "nearest description is of the same task, %": nearest["descriptions"],
        "nearest adapter is of the same task, %": nearest["adapters"],
    }
    write(args.out, {title: rows, "Summary": [summary]})
    centred = products - products.mean(0) - products.mean(1, keepdims=True) + products.mean()
    values, vectors = np.linalg.eigh(centred)
    places = vectors[:, -2:][:, ::-1] * np.sqrt(values[-2:][::-1])
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    for index, label in enumerate(np.unique(kinds)):
        axes.scatter(*places[kind == index].T, s=14, color=plt.get_cmap("tab10")(index % 10), label=label)
    share = values[-2:][::-1] / values.sum()
    axes.set(
        title=f"Adapters of {len(tasks)} unseen tasks, {WORDINGS} wordings each",
        xlabel=f"first principal axis ({share[0]:.0%} of the variance)",
        ylabel=f"second ({share[1]:.0%})",
    )
    axes.legend(fontsize="small")
    figure.savefig(args.out / "curves.png", dpi=120)


if __name__ == "__main__":
    main(tyro.cli(AdapterMap))
