"""`t2l plan --search`: how many tasks a step can hold for each rematerialisation, and which mesh is best."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

from t2l_jax.data.batches import MOST_TOKENS
from t2l_jax.decoder import Remat
from t2l_jax.errors import UserError
from t2l_jax.sharding import MeshConfig, shown
from t2l_jax.training.compiled import Figures
from t2l_jax.training.dry_run import aligned, in_bytes
from t2l_jax.training.plan import Plan, plan
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.topology import Topology

MOST_TASKS = 2**20  # of a batch
PRECISION = 8  # the largest number of tasks is found to one part in so many
Make = Callable[[Recipe, Topology], Plan]


def most_tasks(recipe: Recipe, topology: Topology, make: Make = plan) -> Plan | None:
    """The plan with the most tasks that fits, all else as in the recipe; None if not even one a device does.

    Tasks are added in multiples of what all devices share, doubled until they do not fit, and then bisected.
    """
    unit = len(topology.devices) // recipe.mesh.tensor * recipe.compute.accumulate

    def with_tasks(units: int) -> Plan:
        return make(replace(recipe, batch=replace(recipe.batch, tasks=units * unit)), topology)

    largest = min(MOST_TASKS, MOST_TOKENS // (recipe.batch.rows * recipe.batch.length)) // unit
    low, high, best = 0, 1, None
    while high <= largest and (found := with_tasks(high)).fits:
        low, high, best = high, 2 * high, found
    high = min(high, largest + 1)
    while high - low > max(1, low // PRECISION):
        middle = (low + high) // 2
        if (found := with_tasks(middle)).fits:
            low, best = middle, found
        else:
            high = middle
    return best


def meshes(recipe: Recipe, topology: Topology, make: Make = plan) -> list[Plan]:
    """The recipe's step on every mesh of powers of two that it allows and that fits, the best first.

    Best is the least time by the compiler or, where it says none, the fewest bytes received.
    """
    found, count = [], len(topology.devices)
    sizes = [size for size in (2**power for power in range(count.bit_length())) if count % size == 0]
    for tensor in sizes:
        for fsdp in (size for size in sizes if count % (size * tensor) == 0):
            try:
                one = make(replace(recipe, mesh=MeshConfig(fsdp, tensor)), topology)
            except UserError:  # it does not divide tasks, heads or widths, or the base LLM alone is too large
                continue
            if one.fits:
                found.append(one)
    return sorted(found, key=_cost)


def _cost(found: Plan) -> tuple[float, int]:
    assert isinstance(found.outcome, Figures)
    return found.seconds or 0.0, sum(found.outcome.received.values())


def search(recipe: Recipe, topology: Topology) -> Iterator[str]:
    """The report, part by part: each takes many compilations."""
    yield "Most tasks in a step, by rematerialisation"
    if topology.chip.memory is None:
        yield "  not limited: these devices have no memory of their own"
    for kind in get_args(Remat) if topology.chip.memory else ():
        best = most_tasks(replace(recipe, compute=replace(recipe.compute, remat=kind)), topology)
        yield from aligned([(kind, "none: one on each device does not fit" if best is None else _line(best))])
    yield "\nMeshes for the recipe's tasks, the best first"
    ranked = meshes(recipe, topology)
    yield from aligned([(shown(one.step.mesh), _line(one)) for one in ranked]) if ranked else ["  none fits"]


def _line(found: Plan) -> str:
    outcome = found.outcome
    assert isinstance(outcome, Figures)
    tasks = found.step.recipe.batch.tasks
    time = "" if found.seconds is None else f", {found.seconds:.3g} s"
    traffic = in_bytes(sum(outcome.received.values()))
    return f"{tasks} tasks, {in_bytes(outcome.memory)} a device{time}, {traffic} received"
