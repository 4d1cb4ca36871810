"""What a recipe's training step needs on given devices, by compiling it for them: `t2l plan`.

The FLOPs of the model are those that the mathematics asks for, whatever the program does beside:

    weights     4 for each weight of the layers' kernels and each token: forward, and back to the activations (frozen
                weights have no gradient)
    attention   12 x heads x head width for each layer and each pair of a token and one that it may see: scores and
                sums forward (4), and both back to either of their operands (8)

The compiler does not say how long the kernel of attention (splash) takes. It is counted at half of the chip's peak,
which is an assumption: 14 x heads x head width for each pair, since the backward pass makes the scores again, and 4
more where rematerialisation runs the kernel twice; pairs of the blocks on the diagonal count whole.

The embedding is looked up and the vocabulary scored at supervised positions alone, which depend on the data: neither
counts. What rematerialisation computes again does not count either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from t2l_jax.decoder.splash import BACKWARD_BLOCK, BLOCK, fits
from t2l_jax.io.base import parameter_shapes
from t2l_jax.sharding import shown
from t2l_jax.training.compiled import Figures, Refused, Step, compile_step, make_plan_step
from t2l_jax.training.dry_run import aligned, find_base, in_bytes
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.topology import Topology

Outcome = Figures | Refused
KERNEL_SHARE = 0.5  # of the peak, at which the attention kernel is counted


@dataclass(frozen=True)
class Plan:
    """A step and what its compilation came to."""

    step: Step
    outcome: Outcome

    @property
    def fits(self) -> bool:
        """Whether a device's memory is enough; True where it has none of its own."""
        memory = self.step.topology.chip.memory
        return isinstance(self.outcome, Figures) and (memory is None or self.outcome.memory <= memory)

    @property
    def seconds(self) -> float | None:
        """The compiler's own time for the step, and that of the attention kernel; None if it makes no estimate.

        Its cycles are those of computation: what is sent meanwhile costs nothing as long as it takes no longer.
        """
        clock = self.step.topology.chip.clock
        if clock is None or not isinstance(self.outcome, Figures) or not self.outcome.cycles:
            return None
        return sum(self.outcome.cycles.values()) / clock + self.kernel_seconds

    @property
    def kernel_seconds(self) -> float:
        """The time that is counted for the attention kernel; 0 without it."""
        peak, decoder = self.step.topology.chip.peak, self.step.arguments[2].decoder
        length = self.step.arguments[3].tokens.shape[-1]
        if peak is None or decoder.attention != "splash" or not fits(length):
            return 0.0
        forward = 8 if decoder.remat == "layer" else 4
        flops = forward * _pair_flops(self.step, BLOCK) + 10 * _pair_flops(self.step, BACKWARD_BLOCK)
        return flops / (KERNEL_SHARE * peak * self.step.mesh.size)

    @property
    def share_of_peak(self) -> float | None:
        """The share of the devices' peak that this time comes to, by the FLOPs of the model."""
        peak = self.step.topology.chip.peak
        if self.seconds is None or peak is None:
            return None
        return model_flops(self.step) / (peak * self.step.mesh.size * self.seconds)


def plan(recipe: Recipe, topology: Topology) -> Plan:
    """Compile the step of a recipe. Raises UserError if its mesh cannot be made, or its base LLM is not known here."""
    step = make_plan_step(recipe, find_base(recipe.base)[0], topology)
    return Plan(step, compile_step(step))


def model_flops(step: Step) -> int:
    """The FLOPs of a step, over all devices; see above."""
    base = step.base
    kernels = sum(math.prod(shape) for path, shape in parameter_shapes(base).items() if path.endswith("/kernel"))
    return 4 * kernels * step.tokens + 12 * _pair_flops(step)


def _pair_flops(step: Step, wider: int = 0) -> int:
    """Heads x head width for each layer and pair of tokens, with windows that are so many tokens wider."""
    own, (tasks, rows, length) = step.base.attention, step.arguments[3].tokens.shape
    pairs = sum(_pairs(length, (layer.window or length) + wider) for layer in own.layers)
    return own.num_heads * own.head_dim * tasks * rows * (pairs + len(own.layers) * length * wider // 2)


def _pairs(length: int, window: int) -> int:
    """Pairs of a token of a row and one that it sees: itself and those before it, within the window."""
    window = min(window, length)
    return window * (window + 1) // 2 + (length - window) * window


def report(found: Plan) -> str:
    """A plan in words."""
    step, chip, recipe = found.step, found.step.topology.chip, found.step.recipe
    size = f" of {in_bytes(chip.memory)}" if chip.memory else ""
    lines = [
        f"{recipe.trainee} for {recipe.base_name}, a step compiled for {step.topology.name}: {step.mesh.size} of "
        f"{len(step.topology.devices)} devices{size}",
        "",
        "A step",
        *aligned(list(_of_step(found))),
        "",
        "Memory of a device",
        *aligned(list(_of_memory(found))),
    ]
    if isinstance(found.outcome, Figures):
        lines += ["", "A device receives in a step", *aligned(list(_of_traffic(found.outcome, chip.links)))]
        total = sum(found.outcome.cycles.values())
        shares = [(part, f"{count / total:.1%}") for part, count in found.outcome.cycles.items()]
        lines += ["", "The compiler's time goes to", *aligned(shares)] if shares else []
    return "\n".join(lines)


def _of_step(found: Plan) -> Iterator[tuple[str, ...]]:
    step, recipe, outcome = found.step, found.step.recipe, found.outcome
    tasks, rows, length = step.arguments[3].tokens.shape
    yield "batch", f"{tasks} tasks x {rows} rows x {length} tokens = {step.tokens:,} tokens"
    yield "mesh", shown(step.mesh)
    kept = recipe.compute.remat
    yield "precision", f"{step.arguments[2].decoder.dtype.__name__}, rematerialisation {kept}"
    yield "FLOPs of the model", f"{model_flops(step):.3g}"
    if isinstance(outcome, Figures):
        yield "FLOPs by the compiler", f"{outcome.flops * step.mesh.size:.3g}, with one layer and one chunk of answers"
    if found.seconds is not None:
        rate = f"{step.tokens / found.seconds:,.0f} tokens/s"
        share = "" if found.share_of_peak is None else f", {found.share_of_peak:.0%} of the peak"
        yield "compiler's time", f"{found.seconds:.3g} s: {rate}{share}"
        if found.kernel_seconds:
            yield "of which", f"{found.kernel_seconds:.3g} s for the attention kernel, counted at half of the peak"


def _of_memory(found: Plan) -> Iterator[tuple[str, ...]]:
    outcome, memory = found.outcome, found.step.topology.chip.memory
    for name, size in found.step.held().items():
        yield name, in_bytes(size)
    if isinstance(outcome, Refused):
        yield "in all", f"does not fit: {outcome.reason}"
        return
    yield "temporaries", in_bytes(outcome.temporaries)
    given = f"arguments {in_bytes(outcome.arguments)}, results {in_bytes(outcome.outputs)}"
    yield "results beside", f"{in_bytes(outcome.outputs - outcome.aliased)} ({given})"
    verdict = "" if memory is None else f" of {in_bytes(memory)}: {'fits' if found.fits else 'does not fit'}"
    yield "in all", f"{in_bytes(outcome.memory)}{verdict}"


def _of_traffic(outcome: Figures, links: float | None) -> Iterator[tuple[str, ...]]:
    for kind, size in outcome.received.items():
        if size:
            yield kind, in_bytes(size), f"{outcome.operations[kind]} operations"
    total = sum(outcome.received.values())
    at_least = "" if links is None else f"at least {total / links:.3g} s, at {links / 1e9:.0f} GB/s"
    yield "in all", in_bytes(total), at_least
