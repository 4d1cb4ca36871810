"""Text generation: prefill and decoding with a key/value cache inside one jit, with an adapter per row or per task.

Axes: T tasks (adapters), R rows of one task, S prompt (a bucket), N new tokens, V vocabulary, K stop tokens.

Prompts are padded on the left, so that the next token of every row goes to the same cache slot. Their number and
length are rounded up to a few sizes (see `padding`): a program is compiled for a size, not for a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray
from pydantic import Field

from t2l_jax.decoder import Cache, Decoder, init_cache, logits
from t2l_jax.decoder.padding import bucket, check_tokens, pad_leading, pad_rows, prompt_bucket
from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter
from t2l_jax.schema import NonNegative, check_fields

NewTokens = Annotated[int, Field(ge=1, le=2**17)]  # room for them all is reserved from the start
PREFILL_CHUNK = 256  # tokens; all buckets of prompts above 384 are multiples of it
NO_TOKEN = -1  # in place of a token in a row that has ended

Params = dict[str, Any]
Prompt = Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How many tokens to generate at most, and how to choose each.

    Temperature 0 is greedy. `top_p` samples from the smallest set of tokens whose probability reaches it (nucleus
    sampling, arXiv 1904.09751).
    """

    max_new_tokens: NewTokens = 128
    temperature: NonNegative = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "sampling")


GREEDY = Sampling()


class Draws(NamedTuple):
    """What chooses each row's next token, as arrays: a new temperature needs no new compilation."""

    temperature: Float[Array, "T R"]
    top_p: Float[Array, "T R"]
    keys: PRNGKeyArray  # [T, R]: what a row draws does not depend on the rows beside it


class SamplingArrays(NamedTuple):
    """What chooses the next token, and what ends a row."""

    draws: Draws
    stop_ids: Int[Array, " K"]


@struct.dataclass
class State:
    """Between two decoding steps: the token chosen last (NO_TOKEN: the row has ended), its position, the cache.

    `margin` is the smallest margin (see the function) of a row's tokens so far.
    """

    step: Int[Array, ""]
    token: Int[Array, "T R"]
    position: Int[Array, "T R"]
    margin: Float[Array, "T R"]
    cache: Cache


def generate_tokens(
    decoder: Decoder,
    params: Params,
    prompts: Sequence[Prompt] | Sequence[Sequence[Prompt]],
    *,
    adapter: Adapter | None = None,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    key: PRNGKeyArray | None = None,
) -> list[Any]:
    """The new tokens of each prompt, without the stop token that ended it.

    `prompts` is a list of token lists, or one such list per task; the result is nested alike. An adapter without batch
    axis, or None, serves all prompts. A batch of adapters takes one prompt each, or one list of prompts each. The same
    `key` (default: key 0) draws the same tokens. Raises UserError for an empty prompt, a token outside the vocabulary,
    an adapter of another base, and a batch of adapters that does not match the prompts.
    """
    config = decoder.config
    grouped = any(not isinstance(item, int | np.integer) for prompt in prompts for item in prompt)
    tasks: list[Any] = [list(group) for group in prompts] if grouped else [[prompt] for prompt in prompts]
    flat = [prompt for task in tasks for prompt in task]
    batched = adapter is not None and bool(adapter.batch_shape)
    if adapter is not None:
        config.check_adapter(adapter.spec)
        check_batch(adapter, len(tasks))
    if not flat:
        return []
    tokens, lengths = pad_prompts(tasks if batched else [flat], config.vocab_size)
    if batched:
        adapter = pad_leading(adapter, len(tokens))
    arrays, limits = _sampling_arrays(sampling, stop_ids, key, lengths), np.full_like(lengths, sampling.max_new_tokens)
    new, _ = _generate(decoder, sampling.max_new_tokens, params, tokens, lengths, limits, adapter, arrays)
    rows = [[int(token) for token in row if token != NO_TOKEN] for row in np.asarray(new)[lengths > 0]]
    if not grouped:
        return rows
    rest = iter(rows)
    return [[next(rest) for _ in group] for group in prompts]


def stream(
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    *,
    adapter: Adapter | None = None,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
    key: PRNGKeyArray | None = None,
) -> Iterator[int]:
    """The tokens that `generate_tokens` gives for this one prompt, one by one as they are chosen."""
    if adapter is not None:
        decoder.config.check_adapter(adapter.spec)
        if adapter.batch_shape:
            raise UserError(f"streaming takes one adapter, got a batch of shape {adapter.batch_shape}: index it first")
    tokens, lengths = pad_prompts([[prompt]], decoder.config.vocab_size)
    arrays = _sampling_arrays(sampling, stop_ids, key, lengths)
    state = _start_jit(decoder, sampling.max_new_tokens, params, tokens, lengths, adapter, arrays)
    for left in reversed(range(sampling.max_new_tokens)):
        token = int(state.token[0, 0])
        if token == NO_TOKEN:
            return
        yield token
        if left:
            state = _advance_jit(decoder, params, adapter, arrays, state)


def greedy(
    decoder: Decoder,
    params: Params,
    tokens: Int[np.ndarray, "T R S"],
    lengths: Int[np.ndarray, "T R"],
    limits: Int[np.ndarray, "T R"],
    room: int,
    adapter: Adapter | None,
    stop_ids: Sequence[int],
) -> tuple[Int[Array, "T R N"], Float[Array, "T R"]]:
    """Greedy tokens of padded prompts (see `pad_prompts`), and the smallest margin of each row's tokens in logits.

    A row ends at a stop token, which is left out, or at its own limit, which is at most `room` (N); NO_TOKEN fills the
    rest. A margin above the rounding of the logits says that the row would be the same in any batch. The work is
    dispatched, not waited for.
    """
    arrays = _sampling_arrays(GREEDY, stop_ids, None, lengths)
    return _generate(decoder, room, params, tokens, lengths, limits, adapter, arrays)


def check_batch(adapter: Adapter, prompts: int) -> None:
    """Raise UserError unless the adapter serves that many prompts, or lists of prompts."""
    if adapter.batch_shape not in ((), (prompts,)):
        raise UserError(
            f"adapters of batch shape {adapter.batch_shape} need one prompt, or list of prompts, each; got {prompts}"
        )


def pad_prompts(
    tasks: Sequence[Sequence[Prompt]], vocab_size: int
) -> tuple[Int[np.ndarray, "T R S"], Int[np.ndarray, "T R"]]:
    """Prompts in buckets, padded on the left, and their lengths; length 0 is a row that only fills the bucket."""
    sizes = [len(prompt) for task in tasks for prompt in task]
    if 0 in sizes:
        raise UserError(f"prompt {sizes.index(0)} is empty: the model needs at least one token to start from")
    shape = bucket(len(tasks)), bucket(max(len(task) for task in tasks)), prompt_bucket(max(sizes))
    tokens, lengths = pad_rows(tasks, shape)
    check_tokens(tokens, vocab_size)
    return tokens, lengths


def prefill(
    decoder: Decoder,
    params: Params,
    tokens: Int[Array, "T R S"],
    lengths: Int[Array, "T R"],
    adapter: Adapter | None,
    room: int,
) -> tuple[Float[Array, "T R S D"], Cache]:
    """Read left-padded prompts: their hidden states, and a cache that holds them and has room for more tokens.

    Long prompts are read PREFILL_CHUNK tokens at a time: attention's scores of all S queries never exist at once.
    """
    size = tokens.shape[-1]
    places = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), tokens.shape) - (size - lengths[..., None])
    inputs = tokens, (places >= 0).astype(jnp.int32), jnp.maximum(places, 0)

    def read(cache: Cache, part: tuple[Array, ...]) -> tuple[Cache, Array]:
        tokens, segments, positions = part
        output: Any = decoder.apply(
            {"params": params}, tokens, adapter, segments=segments, positions=positions, cache=cache
        )
        return output[1], output[0]

    cache = init_cache(decoder.config.attention, lengths.shape, size + room, decoder.dtype)
    if size <= PREFILL_CHUNK or size % PREFILL_CHUNK:
        cache, hidden = read(cache, inputs)
        return hidden, cache
    chunks = [jnp.moveaxis(leaf.reshape(*lengths.shape, -1, PREFILL_CHUNK), -2, 0) for leaf in inputs]
    cache, hidden = jax.lax.scan(read, cache, tuple(chunks))
    return jnp.moveaxis(hidden, 0, -3).reshape(*tokens.shape, -1), cache


def choose(scores: Float[Array, "T R V"], draws: Draws, step: Int[Array, "T R"]) -> Int[Array, "T R"]:
    """The next token of each row: the best one at temperature 0, else one drawn. `step` counts a row's tokens."""
    warm = draws.temperature > 0

    def draw() -> Int[Array, "T R"]:
        scaled = scores / jnp.where(warm, draws.temperature, 1.0)[..., None]
        kept = kept_scores(scaled, draws.top_p)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(draws.keys, step)
        drawn = jax.vmap(jax.vmap(jax.random.categorical))(keys, kept).astype(jnp.int32)
        return jnp.where(warm, drawn, best(scores))

    return jax.lax.cond(jnp.any(warm), draw, lambda: best(scores))


def kept_scores(scores: Float[Array, "*B V"], top_p: Float[Array, "*B"]) -> Float[Array, "*B V"]:
    """The scores that may be drawn: all of them at `top_p` 1, where `nucleus` may leave out the last for rounding."""
    cut = top_p < 1
    return jax.lax.cond(jnp.any(cut), lambda: jnp.where(cut[..., None], nucleus(scores, top_p), scores), lambda: scores)


def nucleus(scores: Float[Array, "*B V"], top_p: Float[Array, "*B"]) -> Float[Array, "*B V"]:
    """Scores with -inf outside the smallest set of best tokens whose probability reaches `top_p`."""
    ranked = jnp.sort(scores, axis=-1, descending=True)
    probs = jax.nn.softmax(ranked, axis=-1)
    better = jnp.cumsum(probs, axis=-1) - probs  # the probability of what ranks above: 0 for the best token
    worst_kept = jnp.min(jnp.where(better < top_p[..., None], ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= worst_kept, scores, -jnp.inf)


def best(scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The first of the best scores. XLA vectorises these two reductions on CPUs, and argmax it does not."""
    last = scores.shape[-1] - 1
    return jnp.min(jnp.where(scores == jnp.max(scores, axis=-1, keepdims=True), _places(scores), last), axis=-1)


def margin(scores: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """How far the best score is above the second best; 0 for a tie."""
    others = jnp.where(_places(scores) == best(scores)[..., None], -jnp.inf, scores)
    return jnp.max(scores, axis=-1) - jnp.max(others, axis=-1)


def _places(scores: Float[Array, "*B V"]) -> Int[Array, "*B V"]:
    """Each score's place in the vocabulary."""
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)


def _sampling_arrays(
    sampling: Sampling, stop_ids: Sequence[int], key: PRNGKeyArray | None, lengths: Int[np.ndarray, "T R"]
) -> SamplingArrays:
    """Rows are numbered without the ones that fill the bucket, so that the bucket does not change what they draw."""
    number = jnp.asarray(np.cumsum(lengths > 0, dtype=np.int32).reshape(lengths.shape))
    key = jax.random.key(0) if key is None else key
    row_keys = jax.vmap(jax.vmap(lambda n: jax.random.fold_in(key, n)))(number)
    stops = jnp.asarray(np.asarray(stop_ids, np.int32))
    temperature, top_p = (
        jnp.full(lengths.shape, value, jnp.float32) for value in (sampling.temperature, sampling.top_p)
    )
    return SamplingArrays(Draws(temperature, top_p, row_keys), stops)


def _start(
    decoder: Decoder,
    max_new_tokens: int,
    params: Params,
    tokens: Int[Array, "T R S"],
    lengths: Int[Array, "T R"],
    adapter: Adapter | None,
    sampling: SamplingArrays,
) -> State:
    """Read the prompts into a cache and choose the first token. Logits of the last position only."""
    hidden, cache = prefill(decoder, params, tokens, lengths, adapter, max_new_tokens)
    scores = logits(decoder.config, params, hidden[..., -1, :])
    step = jnp.zeros((), jnp.int32)
    token = choose(scores, sampling.draws, jnp.zeros_like(lengths))
    ended = (lengths == 0) | jnp.isin(token, sampling.stop_ids)
    return State(step, jnp.where(ended, NO_TOKEN, token), lengths, margin(scores), cache)


def _advance(
    decoder: Decoder, params: Params, adapter: Adapter | None, sampling: SamplingArrays, state: State
) -> State:
    """One decoding step: read the token chosen last, choose the next."""
    last = jnp.maximum(state.token, 0)[..., None]
    output: Any = decoder.apply(
        {"params": params}, last, adapter, positions=state.position[..., None], cache=state.cache
    )
    hidden, cache = output
    scores = logits(decoder.config, params, hidden[..., -1, :])
    step = state.step + 1
    token = choose(scores, sampling.draws, jnp.broadcast_to(step, state.token.shape))
    before = state.token == NO_TOKEN
    smallest = jnp.where(before, state.margin, jnp.minimum(state.margin, margin(scores)))
    ended = before | jnp.isin(token, sampling.stop_ids)
    return State(step, jnp.where(ended, NO_TOKEN, token), state.position + 1, smallest, cache)


@partial(jax.jit, static_argnums=(0, 1))
def _generate(
    decoder: Decoder,
    max_new_tokens: int,
    params: Params,
    tokens: Int[Array, "T R S"],
    lengths: Int[Array, "T R"],
    limits: Int[Array, "T R"],
    adapter: Adapter | None,
    sampling: SamplingArrays,
) -> tuple[Int[Array, "T R N"], Float[Array, "T R"]]:
    """Prefill, then decode until every row has ended or is full; NO_TOKEN fills the rest. And the margins."""
    state = _start(decoder, max_new_tokens, params, tokens, lengths, adapter, sampling)
    new = jnp.full((*lengths.shape, max_new_tokens), NO_TOKEN, jnp.int32).at[..., 0].set(state.token)
    # The decoder scans an adapter batch along its layer axis, which XLA would bring to the front in every step. Brought
    # there once outside the loop and taken back inside, the transposes of a step cancel out.
    axis = 0 if adapter is None else len(adapter.batch_shape)
    layers_first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), adapter)

    def more(carry: tuple[State, Array]) -> Array:
        state, _ = carry
        return jnp.any((state.token != NO_TOKEN) & (state.step < limits - 1))

    def advance(carry: tuple[State, Array]) -> tuple[State, Array]:
        state, new = carry
        state = replace(state, token=jnp.where(state.step < limits - 1, state.token, NO_TOKEN))
        batch_first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), layers_first)
        state = _advance(decoder, params, batch_first, sampling, state)
        return state, new.at[..., state.step].set(state.token)

    state, new = jax.lax.while_loop(more, advance, (state, new))
    return new, state.margin


_start_jit = partial(jax.jit, static_argnums=(0, 1))(_start)
_advance_jit = partial(jax.jit, static_argnums=0, donate_argnums=4)(_advance)
