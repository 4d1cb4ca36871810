"""Adapters as vectors: mix, interpolate, concatenate, subtract, and compress back to a small rank.

There are two ways to add adapters, which differ. `mix` and `interpolate` add the factors A and B themselves: the rank
stays, but the delta B A is no longer a sum, since every B meets every A. That has a meaning only for adapters of one
hypernetwork, whose factors are all in one coordinate system. `concatenate` and `subtract` add the deltas, exactly and
for any adapters of one base model; the ranks add up, and `compress` brings them down again.

PEFT's `add_weighted_adapter` calls `concatenate` "cat", and `compress` after it "svd". Its "linear" is not `mix`: it
multiplies A and B by the square roots of the weights.

Axes: T adapters (any leading batch axes), L layers, r rank, i input width, o output width.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

HIGHEST = jax.lax.Precision.HIGHEST


def mix(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The weighted sum of the factors A and B of adapters of one spec and batch shape, which the sum keeps.

    Raises UserError if specs or batch shapes differ.
    """
    _check_weights(adapters, weights)
    first, *others = adapters
    for other in others:
        if other.spec != first.spec:
            raise UserError(
                f"factors are added for adapters of one spec only, {_difference(first.spec, other.spec)}: "
                "concatenate them, which adds their deltas"
            )
        _check_batch(first, other)
    return jax.tree.map(
        lambda *leaves: sum(weight * leaf for weight, leaf in zip(weights, leaves, strict=True)), *adapters
    )


def interpolate(start: Adapter, end: Adapter, t: float) -> Adapter:
    """`start` at t = 0, `end` at t = 1, and the straight line through the factors of both everywhere else."""
    return mix([start, end], [1 - t, t])


def concatenate(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """An adapter in float32 whose delta is the weighted sum of the adapters' deltas; its rank is the sum of theirs.

    Specs may differ in rank, alpha, rsLoRA and modules, of which the result has all. Scales and weights are folded
    into B; the scale of the result is 1. Raises UserError if layers, widths or batch shapes differ.
    """
    _check_weights(adapters, weights)
    spec = _joint_spec(adapters)
    joined = {}
    for module in spec.modules:
        pairs = [_factors(adapter, module) for adapter in adapters]
        factors = [weight * adapter.spec.scale for weight, adapter in zip(weights, adapters, strict=True)]
        joined[module.name] = {
            "a": jnp.concatenate([a for a, _ in pairs], axis=-2),
            "b": jnp.concatenate([factor * b for factor, (_, b) in zip(factors, pairs, strict=True)], axis=-1),
        }
    return Adapter(joined, spec)


def subtract(one: Adapter, other: Adapter) -> Adapter:
    """The exact difference of two adapters' deltas, of the sum of their ranks (see `concatenate`)."""
    return concatenate([one, other], [1.0, -1.0])


def compress(adapter: Adapter, rank: int) -> tuple[Adapter, Float[Array, "*T"]]:
    """The closest adapter of a rank in float32, and how far it is from the given one.

    Each layer's delta becomes its best approximation of that rank, by a singular value decomposition. It is computed
    from the factors, r x r, never from the delta, i x o. The error is relative, in the Frobenius norm over all layers
    and modules: 0 is exact, 1 is as far as no adapter at all.

    Raises UserError for a rank below 1, or above the adapter's own.
    """
    if not 1 <= rank <= adapter.spec.rank:
        raise UserError(f"an adapter of rank {adapter.spec.rank} is compressed to a rank from 1 to that, not {rank}")
    spec = LoraSpec(adapter.spec.modules, adapter.spec.num_layers, rank, alpha=float(rank), rslora=False)
    weights, kept, lost = {}, [], []
    for module in adapter.spec.modules:
        a, b = _factors(adapter, module)
        weights[module.name], values = _truncated(a, adapter.spec.scale * b, rank)
        kept.append(jnp.sum(values[..., :rank] ** 2, axis=(-2, -1)))
        lost.append(jnp.sum(values[..., rank:] ** 2, axis=(-2, -1)))
    whole, dropped = sum(kept) + sum(lost), sum(lost)
    return Adapter(weights, spec), jnp.sqrt(dropped / jnp.where(whole > 0, whole, 1))


def _truncated(
    a: Float[Array, "*T L r i"], b: Float[Array, "*T L o r"], rank: int
) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "*T L s"]]:
    """The factors of the best approximation of B A of a rank, and all singular values of B A.

    A and B get the square root of a singular value each, so that neither is small in a 16-bit file.
    """
    (qa, ra), (qb, rb) = jnp.linalg.qr(a.mT), jnp.linalg.qr(b)
    u, values, vt = jnp.linalg.svd(jnp.matmul(rb, ra.mT, precision=HIGHEST), full_matrices=False)
    root = jnp.sqrt(values[..., :rank])
    new_b = jnp.matmul(qb, u[..., :rank], precision=HIGHEST) * root[..., None, :]
    new_a = jnp.matmul(qa, vt.mT[..., :rank], precision=HIGHEST) * root[..., None, :]
    missing = [(0, 0)] * (a.ndim - 1) + [(0, rank - root.shape[-1])]  # a projection narrower than the rank
    return {"a": jnp.pad(new_a, missing).mT, "b": jnp.pad(new_b, missing)}, values


def _factors(adapter: Adapter, module: LoraModule) -> tuple[Float[Array, "*T L r i"], Float[Array, "*T L o r"]]:
    """A and B of a module in float32; zeros if the adapter does not have it."""
    spec, pair = adapter.spec, adapter.weights.get(module.name)
    if pair is None:
        sizes = (spec.rank, module.d_in), (module.d_out, spec.rank)
        a, b = (jnp.zeros((*adapter.batch_shape, spec.num_layers, *size), jnp.float32) for size in sizes)
        return a, b
    return jnp.asarray(pair["a"], jnp.float32), jnp.asarray(pair["b"], jnp.float32)


def _joint_spec(adapters: Sequence[Adapter]) -> LoraSpec:
    """The spec of a concatenation, of scale 1. Raises UserError if the adapters are of different base models."""
    first, *others = adapters
    modules: dict[str, LoraModule] = {}
    for adapter in adapters:
        for module in adapter.spec.modules:
            known = modules.setdefault(module.name, module)
            if known != module:
                raise UserError(
                    f"the adapters are of different base models: {module.name} is {known.d_in} -> {known.d_out} in one "
                    f"and {module.d_in} -> {module.d_out} in another"
                )
    for other in others:
        if other.spec.num_layers != first.spec.num_layers:
            raise UserError(
                "the adapters are of different base models: one has "
                f"{first.spec.num_layers} layers, another {other.spec.num_layers}"
            )
        _check_batch(first, other)
    rank = sum(adapter.spec.rank for adapter in adapters)
    return LoraSpec(tuple(modules.values()), first.spec.num_layers, rank, alpha=float(rank), rslora=False)


def _check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters or len(adapters) != len(weights):
        raise UserError(f"adapters need one weight each, got {len(adapters)} adapters and {len(weights)} weights")
    for weight in weights:
        if not math.isfinite(weight):
            raise UserError(f"the weight of an adapter must be a finite number, got {weight}")


def _check_batch(first: Adapter, other: Adapter) -> None:
    if other.batch_shape != first.batch_shape:
        raise UserError(
            f"the adapters are batches of different shapes, {first.batch_shape} and {other.batch_shape}: index them"
        )


def _difference(one: LoraSpec, other: LoraSpec) -> str:
    """The first thing in which two specs differ."""
    both = [spec.to_dict() for spec in (one, other)]
    name = next(name for name in both[0] if both[0][name] != both[1][name])
    return f"and {name} is {both[0][name]} in one and {both[1][name]} in another"
