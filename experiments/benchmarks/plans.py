"""Do the paper's recipes and larger base LLMs fit on TPU slices, what do they send, and how fast would they be?

Command: python -m experiments.benchmarks.plans     (each step that is not in the cache compiles for 2 to 5 minutes)
Answer:  Mistral-7B fits on 16 chips of v5e, Llama-3.1-70B on 64 of v5p; what a device receives does not grow with the
         number of devices (results/plans)

Each step is compiled by the TPU's own compiler, which needs no TPU: pip install 'libtpu==0.0.42.*'. Nothing is run: the
times are the compiler's estimates, and the attention kernel is counted at half of the peak (t2l_jax/training/plan.py).
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro

from experiments.recipes import paper_gemma, paper_llama, paper_mistral
from experiments.tools.results import RESULTS, write
from t2l_jax.decoder import Remat
from t2l_jax.decoder.quantized import BaseKind
from t2l_jax.sharding import MeshConfig, shown
from t2l_jax.training.compiled import Figures
from t2l_jax.training.plan import plan
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.topology import find_topology

NAME_70B = "meta-llama/Llama-3.1-70B-Instruct"
LLAMA_8B = paper_llama.RECIPE
LLAMA_70B = replace(LLAMA_8B, base=f"hf:{NAME_70B}", base_name=NAME_70B)


def step(
    recipe: Recipe,
    tasks: int,
    length: int,
    fsdp: int | None = None,
    tensor: int = 1,
    remat: Remat = "projections",
    base: BaseKind = "native",
) -> Recipe:
    """The recipe with steps of so many tasks of one row."""
    return replace(
        recipe,
        batch=replace(recipe.batch, tasks=tasks, rows=1, length=length),
        compute=replace(recipe.compute, remat=remat, base=base),
        mesh=MeshConfig(fsdp, tensor),
    )


TABLES: dict[str, list[tuple[Recipe, str]]] = {
    "Recipes": [
        (step(paper_mistral.RECIPE, 16, 1024), "v5e:4x4"),
        (step(paper_gemma.RECIPE, 8, 1024), "v5e:2x4"),
        (step(LLAMA_8B, 128, 4096), "v5p:4x4x4"),
        (step(LLAMA_70B, 64, 4096), "v5p:4x4x4"),
        (step(LLAMA_70B, 64, 4096, remat="layer"), "v6e:8x8"),
    ],
    "Llama-3.1-8B on more and more devices, the base LLM divided among eight": [
        (step(LLAMA_8B, 16, 4096, fsdp=8), "v5p:2x2x2"),
        (step(LLAMA_8B, 32, 4096, fsdp=8), "v5p:2x2x4"),
        (step(LLAMA_8B, 128, 4096, fsdp=8), "v5p:4x4x4"),
    ],
    "The same by the CPU's compiler, in float32": [
        (step(LLAMA_8B, 2 * devices, 4096, fsdp=8), f"cpu:{devices}") for devices in (8, 64, 512)
    ],
    "Mistral-7B whole on each device of 16 GB, a row of 1,024 tokens each": [
        (step(paper_mistral.RECIPE, 4, 1024, fsdp=1, remat="layer", base="int8"), "v5e:2x2"),
        (step(paper_mistral.RECIPE, 4, 1024, fsdp=1, remat="layer", base="nf4"), "v5e:2x2"),
    ],
    "Mistral-7B with its layers divided, too": [
        (step(paper_mistral.RECIPE, 8, 1024, fsdp=4, tensor=2), "v5e:4x4"),
    ],
}


@dataclass(frozen=True)
class Plans:
    """Compile the steps and write the tables."""

    out: Path = RESULTS / "plans"
    """Folder of the result."""


def main(args: Plans) -> None:
    """Compile one after the other; equal ones come from the cache."""
    tables: dict[str, list[dict[str, Any]]] = {}
    apart = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # a process has one number of devices
    with apart:
        for title, steps in TABLES.items():
            rows = tables.setdefault(title, [])
            for found in apart.map(_row, *zip(*steps, strict=True)):
                rows.append(found)
                print(found, flush=True)
    write(args.out, tables)


def _row(recipe: Recipe, topology: str) -> dict[str, Any]:
    """What the plan says, sizes in GB on one device."""
    found = plan(recipe, find_topology(topology))
    outcome, made = found.outcome, found.step
    row: dict[str, Any] = {
        "base LLM": recipe.base_name.split("/")[-1],
        "devices": made.topology.name,
        "mesh": shown(made.mesh),
        "tasks x tokens": f"{recipe.batch.tasks} x {recipe.batch.length}",
        "stored": recipe.compute.base,
        "keeps": recipe.compute.remat,
        "base, GB": round(made.held()["base LLM"] / 1e9, 2),
    }
    if not isinstance(outcome, Figures):
        return row | {"in all": "does not fit"}
    received = outcome.received
    row |= {
        "temporaries": round(outcome.temporaries / 1e9, 1),
        "in all": round(outcome.memory / 1e9, 1),
        "of": round(made.topology.chip.memory / 1e9) if made.topology.chip.memory else "-",
        "gathered": round(received["all-gather"] / 1e9, 2),
        "reduced": round(received["all-reduce"] / 1e9, 2),
        "other": round((sum(received.values()) - received["all-gather"] - received["all-reduce"]) / 1e9, 2),
    }
    if found.seconds is not None and found.share_of_peak is not None:
        rate = round(made.tokens / found.seconds)
        row |= {"s": round(found.seconds, 2), "tokens/s": rate, "% of peak": round(100 * found.share_of_peak, 1)}
    return row


if __name__ == "__main__":
    main(tyro.cli(Plans))
