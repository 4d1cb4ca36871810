"""One thread that decodes for everybody: requests wait in a queue, join the ring, and leave it when they end."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from t2l_jax.decoder import Cache, Decoder
from t2l_jax.decoder.generation import Draws, Params
from t2l_jax.decoder.padding import SHORTEST_PROMPT, check_tokens, pad_rows, power_of_two
from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter, LoraSpec, stack
from t2l_jax.serving.ring import Chosen, Ring, advance, blank_ring, join, read, resize, score

READ_AT_ONCE = 8  # prompts
FEWEST_SLOTS = 128

Reason = Literal["stop", "length", "late", "error"]


class Busy(Exception):
    """The queue is full."""


class TokenScore(NamedTuple):
    """A token with its log probability, and the best tokens in its place with theirs."""

    token: int
    logprob: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Job:
    """A prompt's tokens to be continued. Temperature 0 is greedy.

    `on_tokens` is called from the engine's thread, with new tokens as they come and a reason with the last of them,
    which is a stop token if the reason is stop. It must return at once.
    """

    prompt: Sequence[int]
    on_tokens: Callable[[Sequence[TokenScore], Reason | None], None]
    adapter: Adapter | None = None
    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: bool = False
    ignore_stops: bool = False
    """Whether stop tokens are tokens as any other."""
    on_prompt: Callable[[Sequence[TokenScore]], None] | None = None
    """Called with the prompt's own scores, if they are wanted; the first token has none, and 0 stands there."""
    until: float = float("inf")
    """When to give up, by `time.monotonic`."""


@dataclass(eq=False)
class Ticket:
    """A job in the engine."""

    job: Job
    cancelled: bool = False
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.job.max_tokens

    def cancel(self) -> None:
        """End the job at the next step; nothing is called for it any more."""
        self.cancelled = True


class Prompts(NamedTuple):
    """What was made of some prompts [n], for `join`."""

    chosen: Chosen
    cache: Cache
    lengths: Int[Array, "n 1"]
    adapter: Adapter
    draws: Draws


@dataclass
class Counts:
    """What the engine has done so far."""

    jobs: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Limits:
    """What an engine takes."""

    rows: int = 64
    """Jobs that decode at once."""
    context: int = 2048
    """Tokens of a job, those of its prompt included."""
    slots: int = 2**16
    """Tokens for which there is a cache: rows x the longest job among them, both rounded up to powers of two."""
    queue: int = 256
    """Jobs that wait."""


DEFAULT = Limits()


class Engine:
    """Decodes jobs together, as many as the limits allow.

    Adapters must fit `spec`: its modules or some of them, its rank or less. The arrays of the ring grow and shrink with
    what is going on, to powers of two, so that a single user does not pay for many.
    """

    def __init__(
        self, decoder: Decoder, params: Params, stop_ids: Sequence[int], spec: LoraSpec, limits: Limits = DEFAULT
    ) -> None:
        if power_of_two(limits.context) > limits.slots:
            raise UserError(f"a cache of {limits.slots} tokens cannot hold a completion of {limits.context}: take more")
        self.decoder, self.params, self.spec, self.limits = decoder, params, spec, limits
        self.stop_ids = frozenset(stop_ids)
        self.counts = Counts()
        self._waiting: deque[Ticket] = deque()
        self._places: list[Ticket | None] = []  # by row of the ring
        self._ring: Ring | None = None
        self._changed = threading.Condition()
        self._closing: Literal["no", "drain", "now"] = "no"
        self._none = _zeros(spec)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """How many jobs are decoding."""
        return sum(ticket is not None for ticket in self._places)

    @property
    def waiting(self) -> int:
        """How many jobs are in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def check(self, prompt: Sequence[int], max_tokens: int) -> None:
        """Raise UserError for a prompt that cannot be continued by so many tokens."""
        if not prompt:
            raise UserError("the prompt is empty: the model needs at least one token to start from")
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}: ask for at least one token")
        if len(prompt) + max_tokens > self.limits.context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {max_tokens}, together more than the "
                f"{self.limits.context} of this server: shorten one of them"
            )
        check_tokens(np.asarray(prompt), self.decoder.config.vocab_size)

    def submit(self, job: Job) -> Ticket:
        """Queue a job. Raises Busy if the queue is full or the engine is closing, and UserError as `check` does."""
        self.check(job.prompt, job.max_tokens)
        ticket = Ticket(job if job.adapter is None else replace(job, adapter=fitted(job.adapter, self.spec)))
        with self._changed:
            if self._closing != "no" or len(self._waiting) >= self.limits.queue:
                raise Busy
            self._waiting.append(ticket)
            self.counts.jobs += 1
            self._changed.notify()
        return ticket

    def close(self, *, drain: bool) -> None:
        """End the engine: after the jobs that it has (`drain`), or at the next step."""
        with self._changed:
            self._closing = "drain" if drain else "now"
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self.active and self._closing == "no":
                    self._changed.wait()
                if self._closing == "now" or (self._closing == "drain" and not self._waiting and not self.active):
                    break
            try:
                self._drop()
                self._admit()
                if self.active:
                    self._step()
            except Exception:
                logging.getLogger(__name__).exception("a step failed: its jobs end")
                self._end_all()
                self._ring, self._places = None, []
        self._end_all()

    def _end_all(self) -> None:
        with self._changed:
            tickets = [*self._waiting, *filter(None, self._places)]
            self._waiting.clear()
            self._places = [None] * len(self._places)
        for ticket in tickets:
            if not ticket.cancelled:
                ticket.job.on_tokens((), "error")

    def _drop(self) -> None:
        """Let go of jobs that nobody waits for."""
        now = time.monotonic()

        def gone(ticket: Ticket) -> bool:
            late = ticket.job.until < now
            if late and not ticket.cancelled:
                ticket.job.on_tokens((), "late")
            return late or ticket.cancelled

        with self._changed:
            self._waiting = deque(ticket for ticket in self._waiting if not gone(ticket))
        self._places = [None if ticket is None or gone(ticket) else ticket for ticket in self._places]

    def _admit(self) -> None:
        """Let a few waiting jobs join whose prompts are of one bucket; the first in the queue is among them."""
        with self._changed:
            if not self._waiting:
                return
            size, free = _bucket(self._waiting[0]), self.limits.rows - self.active
            chosen = [ticket for ticket in self._waiting if _bucket(ticket) == size][: min(free, READ_AT_ONCE)]
            while chosen and math.prod(self._shape(chosen)) > self.limits.slots:
                chosen.pop()
            if not chosen:
                return
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in chosen)
        try:
            self._make_room(chosen)
            prompts = self._read(chosen)
        except Exception:  # the ring is as it was: those in it go on
            logging.getLogger(__name__).exception("prompts could not be read: their jobs end")
            for ticket in chosen:
                ticket.job.on_tokens((), "error")
            return
        self._join(chosen, prompts)

    def _shape(self, joining: Sequence[Ticket]) -> tuple[int, int]:
        """Rows and slots that the jobs in the ring need together with those that join."""
        tickets = [*filter(None, self._places), *joining]
        longest = max(max(len(ticket.job.prompt) + ticket.job.max_tokens, _bucket(ticket)) for ticket in tickets)
        return power_of_two(len(tickets)), max(FEWEST_SLOTS, power_of_two(longest))

    def _make_room(self, joining: Sequence[Ticket]) -> None:
        """Fit the ring to the jobs in it and those that join."""
        rows, slots = self._shape(joining)
        if self._ring is None:
            self._ring, self._places = blank_ring(self.decoder, self.spec, rows, slots), [None] * rows
            return
        had = self._ring.shape
        if rows > had[0] or 4 * rows <= had[0] or slots > had[1] or 4 * slots <= had[1]:
            kept = [row for row, ticket in enumerate(self._places) if ticket is not None]
            taken = kept + [0] * (rows - len(kept))
            self._ring = resize(self._ring, jnp.asarray(taken, jnp.int32), slots)
            self._places = [*(self._places[row] for row in kept), *[None] * (rows - len(kept))]

    def _read(self, tickets: Sequence[Ticket]) -> Prompts:
        """Read the prompts of jobs; the last one fills up the number of rows that are read at once."""
        jobs = [ticket.job for ticket in tickets]
        for job in jobs:
            if job.on_prompt is not None:
                job.on_prompt(self._scores(job))
        several = [*jobs, *jobs[-1:] * (power_of_two(len(jobs)) - len(jobs))]
        tokens, lengths = _padded(several)
        adapter = stack([self._none if job.adapter is None else job.adapter for job in several])
        draws = Draws(
            jnp.asarray([[job.temperature] for job in several], jnp.float32),
            jnp.asarray([[job.top_p] for job in several], jnp.float32),
            # As `generate_tokens` draws for its first row.
            jnp.stack([jax.random.fold_in(jax.random.key(job.seed), 1) for job in several])[:, None],
        )
        asked = jnp.asarray(any(job.logprobs for job in jobs))
        chosen, cache = read(self.decoder, self.params, tokens, lengths, adapter, draws, asked)
        return Prompts(jax.block_until_ready(chosen), cache, jnp.asarray(lengths), adapter, draws)

    def _join(self, tickets: Sequence[Ticket], prompts: Prompts) -> None:
        """Give the jobs whose prompts were read a row each, and their first token."""
        free = [row for row, ticket in enumerate(self._places) if ticket is None][: len(tickets)]
        rows = [*free, *free[-1:] * (len(prompts.lengths) - len(free))]
        for row, ticket in zip(free, tickets, strict=True):
            self._places[row] = ticket
        assert self._ring is not None
        chosen, cache, *others = prompts
        self._ring = join(self._ring, cache, jnp.asarray(rows, jnp.int32), chosen.token, *others)
        self.counts.prompt_tokens += sum(len(ticket.job.prompt) for ticket in tickets)
        self._hand_out(chosen, dict(enumerate(free)))

    def _step(self) -> None:
        """Decode a token of every row."""
        rows = {row: row for row, ticket in enumerate(self._places) if ticket is not None}
        asked = any(ticket is not None and ticket.job.logprobs for ticket in self._places)
        assert self._ring is not None
        self._ring, chosen = advance(self.decoder, self.params, self._ring, jnp.asarray(asked))
        self.counts.steps += 1
        self._hand_out(chosen, rows)

    def _hand_out(self, chosen: Chosen, rows: dict[int, int]) -> None:
        """Give the tokens to their jobs, by the row in `chosen` and that of the ring; rows that end become free."""
        found = jax.device_get(chosen)
        for index, row in rows.items():
            ticket = self._places[row]
            assert ticket is not None
            (one,) = _scored(
                jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], found), ticket.job.logprobs
            )
            stops = one.token in self.stop_ids and not ticket.job.ignore_stops
            ticket.left -= 1
            reason: Reason | None = "stop" if stops else "length" if ticket.left == 0 else None
            self.counts.new_tokens += 1
            if reason is not None:
                self._places[row] = None
            if not ticket.cancelled:
                ticket.job.on_tokens((one,), reason)

    def _scores(self, job: Job) -> Sequence[TokenScore]:
        tokens, lengths = _padded([job])
        adapter = stack([self._none if job.adapter is None else job.adapter])
        found = jax.device_get(score(self.decoder, self.params, tokens, lengths, adapter))
        own = _scored(Chosen(*(leaf[-len(job.prompt) :] for leaf in found)), True)
        return [TokenScore(job.prompt[0], 0.0, ()), *own[1:]]


def fitted(adapter: Adapter, spec: LoraSpec) -> Adapter:
    """The adapter in the shape of a larger spec, with the same deltas: what it lacks is zero, its scale is in B.

    Raises UserError for modules, widths, layers or a rank that the spec does not have.
    """
    own = adapter.spec
    widths = {module.name: (module.d_in, module.d_out) for module in spec.modules}
    for module in own.modules:
        if widths.get(module.name) != (module.d_in, module.d_out) or own.num_layers != spec.num_layers:
            raise UserError(
                f"the adapter changes {module.name} of {own.num_layers} layers, {module.d_in} -> {module.d_out}, which "
                f"this server does not: it serves {', '.join(spec.names)} of {spec.num_layers} layers"
            )
    if own.rank > spec.rank:
        raise UserError(f"the adapter's rank is {own.rank}, and this server's at most {spec.rank}: compress it")
    if own == spec:
        return adapter
    weights = _zeros(spec).weights
    for name, sides in adapter.weights.items():
        more = spec.rank - own.rank
        weights[name] = {
            "a": jnp.pad(sides["a"], ((0, 0), (0, more), (0, 0))),
            "b": jnp.pad(sides["b"] * (own.scale / spec.scale), ((0, 0), (0, 0), (0, more))),
        }
    return Adapter(weights, spec)


def _zeros(spec: LoraSpec) -> Adapter:
    """The adapter that changes nothing."""
    shapes = spec.shapes().items()
    return Adapter({name: {side: jnp.zeros(shape) for side, shape in own.items()} for name, own in shapes}, spec)


def _bucket(ticket: Ticket) -> int:
    """The length to which its prompt is padded."""
    return max(SHORTEST_PROMPT, power_of_two(len(ticket.job.prompt)))


def _padded(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
    """Their prompts [n, 1, S] and lengths."""
    longest = max(SHORTEST_PROMPT, power_of_two(max(len(job.prompt) for job in jobs)))
    return pad_rows([[job.prompt] for job in jobs], (len(jobs), 1, longest))


def _scored(chosen: Chosen, asked: bool) -> list[TokenScore]:
    """Tokens on the host, with their scores if these are asked for."""
    if not asked:
        return [TokenScore(int(token), 0.0, ()) for token in chosen.token]
    return [
        TokenScore(int(token), float(logprob), tuple(zip(best.tolist(), scores.tolist(), strict=True)))
        for token, logprob, best, scores in zip(*chosen, strict=True)
    ]
