"""Does a training step fit on a TPU slice, what do its devices send, and how fast does the compiler think it is?

Command: python -m experiments.benchmarks.pods [--only 8B]       (pip install 'libtpu==0.0.42.*'; 3 to 8 minutes a row)
Answer:  results/pods

The steps of the paper's recipes, with rows of 4,096 tokens (Mistral and Gemma: 1,024), compiled by the TPU's compiler
on a machine without one: see t2l_jax/training/plan.py. Rows that were compiled before come from the cache.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from experiments.tools.results import RESULTS, write
from t2l_jax.cli.entry import read_recipe
from t2l_jax.sharding import MeshConfig, shown
from t2l_jax.training.compiled import Figures
from t2l_jax.training.plan import plan
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.topology import find_topology


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    recipe: str
    topology: str
    tasks: int
    length: int = 4096
    mesh: MeshConfig = field(default_factory=MeshConfig)
    base: str | None = None


LARGE = "hf:meta-llama/Llama-3.1-70B-Instruct"
CASES = (
    *(
        Case("Llama 3.1 8B", "llama", topology, tasks, mesh=MeshConfig(fsdp))
        for fsdp in (None, 8)
        for topology, tasks in (("v5p:2x2x2", 16), ("v5p:2x2x4", 32), ("v5p:4x4x4", 128))
    ),
    Case("Llama 3.1 70B", "llama", "v5p:4x4x4", 64, base=LARGE),
    Case("Llama 3.1 70B", "llama", "v6e:8x8", 64, base=LARGE),
    Case("Mistral 7B", "mistral", "v5e:4x4", 16, 1024),
    Case("Gemma 2 2B", "gemma", "v5e:2x4", 8, 1024),
)


@dataclass(frozen=True)
class Pods:
    """Compile training steps for TPU slices."""

    only: str = ""
    """A part of the names of the base LLMs to compile for."""
    out: Path = RESULTS / "pods"


def row(case: Case) -> dict[str, object]:
    """What the compiler says of a case."""
    recipe = read_recipe(f"experiments/recipes/paper_{case.recipe}.py", Recipe)
    shape = replace(recipe.batch, tasks=case.tasks, length=case.length)
    found = plan(
        replace(recipe, base=case.base or recipe.base, batch=shape, mesh=case.mesh), find_topology(case.topology)
    )
    outcome = found.outcome
    known = isinstance(outcome, Figures)
    received = outcome.received if isinstance(outcome, Figures) else {}
    return {
        "base LLM": case.name,
        "devices": case.topology,
        "mesh": shown(found.step.mesh),
        "rows": f"{case.tasks} x {case.length}",
        "fits": "yes" if found.fits else "no",
        "arguments, GB": round(outcome.arguments / 1e9, 1) if known else None,
        "temporaries, GB": round(outcome.temporaries / 1e9, 1) if known else None,
        "gathered, GB": round(received["all-gather"] / 1e9, 2) if known else None,
        "reduced, GB": round(received["all-reduce"] / 1e9, 2) if known else None,
        "seconds": None if found.seconds is None else round(found.seconds, 2),
        "% of peak": None if found.share_of_peak is None else round(100 * found.share_of_peak),
    }


def main(args: Pods) -> None:
    """Write the table."""
    rows = []
    for case in CASES:
        if args.only in case.name:
            rows.append(row(case))
            print(rows[-1], flush=True)
    write(args.out, {"A training step by the TPU's compiler, for each device": rows})


if __name__ == "__main__":
    main(tyro.cli(Pods))
