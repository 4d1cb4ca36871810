"""Rows of tokens that decode together and come and go between steps, each with an adapter of its own.

In a step every row writes to the same slot of the cache, and the slots follow each other in a ring. A row that joins
gets its prompt into the slots before the next one. Attention goes by the positions of tokens, never by the order of
their slots, so a row needs no slot of its own, only to be shorter than the ring: in its last slot its first token would
be overwritten.

Axes: T rows, n rows that join, C slots of the ring, S prompt, L layers, V vocabulary, k best tokens.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from t2l_jax.decoder import Cache, Decoder, init_cache, logits
from t2l_jax.decoder.generation import Draws, Params, choose, prefill
from t2l_jax.lora import Adapter, LoraSpec

BEST = 20  # tokens whose log probabilities can be asked for, beside the chosen one's


@struct.dataclass
class Ring:
    """Between two steps. A second axis of size 1 stands where other parts of the decoder have the rows of a task.

    What a row that nobody uses holds is arbitrary: the next one to join there replaces all of it.
    """

    adapter: Adapter  # [L, T, ...]: layers first, as the decoder reads them
    cache: Cache
    token: Int[Array, "T 1"]  # chosen last, read next
    position: Int[Array, "T 1"]  # of that token
    step: Int[Array, "T 1"]  # how many were chosen before it
    draws: Draws

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots."""
        rows, _, slots = self.cache.positions.shape
        return rows, slots


class Chosen(NamedTuple):
    """What a step chose for each row, and, if any row asked, log probabilities at temperature 1 (else zeros)."""

    token: Int[Array, " T"]
    logprob: Float[Array, " T"]
    best: Int[Array, "T k"]
    best_logprobs: Float[Array, "T k"]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # so that no two arrays share a buffer: they are donated
def blank_ring(decoder: Decoder, spec: LoraSpec, rows: int, slots: int) -> Ring:
    """A ring that nobody uses."""
    zeros = jnp.zeros((rows, 1), jnp.int32)
    weights = {
        name: {side: jnp.zeros((shape[0], rows, *shape[1:])) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    cache = init_cache(decoder.config.attention, (rows, 1), slots, decoder.dtype)
    none = jnp.zeros((rows, 1), jnp.float32)
    keys = jnp.broadcast_to(jax.random.key(0), (rows, 1))
    return Ring(Adapter(weights, spec), cache, zeros, zeros, zeros, Draws(none, none + 1, keys))


@partial(jax.jit, static_argnums=0)
def read(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "n 1 S"],
    lengths: Int[Array, "n 1"],
    adapter: Adapter,
    draws: Draws,
    asked: Bool[Array, ""],
) -> tuple[Chosen, Cache]:
    """Left-padded prompts, each with its adapter [n]: the first tokens, and a cache of S slots."""
    hidden, cache = prefill(decoder, params, tokens, lengths, adapter, 0)
    scores = logits(decoder.config, params, hidden[..., -1, :])
    return _chosen(scores, choose(scores, draws, jnp.zeros_like(lengths)), asked), cache


@partial(jax.jit, donate_argnums=0)
def join(
    ring: Ring,
    cache: Cache,
    rows: Int[Array, " n"],
    token: Int[Array, " n"],
    lengths: Int[Array, "n 1"],
    adapter: Adapter,
    draws: Draws,
) -> Ring:
    """The ring with what `read` made in these rows. The later of two that go to the same row stays."""
    slots, size = ring.shape[1], cache.positions.shape[-1]

    def on_ring(leaf: Array, axis: int) -> Array:
        """As long as the ring, so that its end lies before the next slot."""
        padding = [(0, 0)] * leaf.ndim
        padding[axis] = (slots - size, 0)
        return jnp.roll(jnp.pad(leaf, padding), ring.cache.slot, axis)

    def put(into: Any, what: Any, axis: int) -> Any:
        """Rows of arrays, whose axis this is, in place of those of the ring."""

        def one(into: Array, what: Array) -> Array:
            for index in range(rows.shape[0]):
                row = jax.lax.dynamic_slice_in_dim(what, index, 1, axis)
                into = jax.lax.dynamic_update_slice_in_dim(into, row.astype(into.dtype), rows[index], axis)
            return into

        return jax.tree.map(one, into, what)

    old = ring.cache
    return Ring(
        put(ring.adapter, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), adapter), 1),
        replace(
            old,
            keys=put(old.keys, on_ring(cache.keys, 4), 1),
            values=put(old.values, on_ring(cache.values, 4), 1),
            positions=put(old.positions, on_ring(cache.positions, 2), 0),
            segments=put(old.segments, on_ring(cache.segments, 2), 0),
        ),
        put(ring.token, token[:, None], 0),
        put(ring.position, lengths, 0),
        put(ring.step, jnp.zeros_like(lengths), 0),
        put(ring.draws, draws, 0),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(decoder: Decoder, params: Params, ring: Ring, asked: Bool[Array, ""]) -> tuple[Ring, Chosen]:
    """One step: every row reads its last token and chooses the next."""
    adapter = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), ring.adapter)
    output: Any = decoder.apply(
        {"params": params}, ring.token[..., None], adapter, positions=ring.position[..., None], cache=ring.cache
    )
    hidden, cache = output
    scores, step = logits(decoder.config, params, hidden[..., -1, :]), ring.step + 1
    token = choose(scores, ring.draws, step)
    cache = replace(cache, slot=cache.slot % ring.shape[1])
    ring = replace(ring, cache=cache, token=token, position=ring.position + 1, step=step)
    return ring, _chosen(scores, token, asked)


@partial(jax.jit, static_argnums=2)
def resize(ring: Ring, rows: Int[Array, " T"], slots: int) -> Ring:
    """A ring of these rows of another, in this order, with so many slots: of fewer slots the newest are kept."""

    def turned(leaf: Array, axis: int) -> Array:
        """The oldest slot first; new ones before it."""
        leaf = jnp.roll(leaf, -ring.cache.slot, axis)
        more = max(0, slots - leaf.shape[axis])
        padding = [(0, 0)] * leaf.ndim
        padding[axis] = (more, 0)
        leaf = jnp.pad(leaf, padding)
        return jax.lax.slice_in_dim(leaf, leaf.shape[axis] - slots, None, axis=axis)

    def taken(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis), tree)

    old = ring.cache
    return Ring(
        taken(ring.adapter, 1),
        Cache(
            turned(taken(old.keys, 1), 4),
            turned(taken(old.values, 1), 4),
            turned(taken(old.positions, 0), 2),
            turned(taken(old.segments, 0), 2),
            jnp.zeros((), jnp.int32),
        ),
        *(taken(leaf, 0) for leaf in (ring.token, ring.position, ring.step, ring.draws)),
    )


@partial(jax.jit, static_argnums=0)
def score(
    decoder: Decoder, params: Params, tokens: Int[Array, "1 1 S"], lengths: Int[Array, "1 1"], adapter: Adapter
) -> Chosen:
    """Of a left-padded prompt [S]: the log probability of each token after those before it (the first one's is 0)."""
    hidden, _ = prefill(decoder, params, tokens, lengths, adapter, 0)

    def one(place: tuple[Array, Array]) -> Chosen:
        hidden, token = place
        return _chosen(logits(decoder.config, params, hidden[None, None]), token[None, None], jnp.asarray(True))

    before, after = hidden[0, 0, :-1], tokens[0, 0, 1:]
    found = jax.lax.map(one, (before, after), batch_size=32)
    return jax.tree.map(lambda leaf: jnp.pad(leaf[:, 0], ((1, 0), *[(0, 0)] * (leaf.ndim - 2))), found)


def _chosen(scores: Float[Array, "T 1 V"], token: Int[Array, "T 1"], asked: Bool[Array, ""]) -> Chosen:
    """The rows' tokens, and, if asked, log probabilities."""
    rows, count = scores.shape[0], min(BEST, scores.shape[-1])

    def found() -> tuple[Array, Array, Array]:
        logprobs = jax.nn.log_softmax(scores[:, 0])
        best_logprobs, best = jax.lax.top_k(logprobs, count)
        return jnp.take_along_axis(logprobs, token, 1)[:, 0], best.astype(jnp.int32), best_logprobs

    def nothing() -> tuple[Array, Array, Array]:
        return jnp.zeros(rows), jnp.zeros((rows, count), jnp.int32), jnp.zeros((rows, count))

    return Chosen(token[:, 0], *jax.lax.cond(asked, found, nothing))
