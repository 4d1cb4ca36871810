"""Multiple choice: the possible answers of an example, and their likelihood under a model.

The score of a choice is the log-probability of its tokens and of the end-of-turn token. It is that of the whole answer,
so it is not divided by the length, and a choice that is a prefix of another has no advantage.

Axes: T tasks (adapters), R rows, S prompt, K choices, A tokens of a choice and its end.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.generation import prefill
from t2l_jax.lora import Adapter

_LETTERS = re.compile(r"\(([A-Z])\)|\bCompletion ([A-Z])\b")
_MARKED = re.compile(r"^(?:Option )?([A-Z]|\d): ", re.MULTILINE)
_ANSWER = re.compile(r"(\(|Completion )?([A-Z])(\)|\.)?")


def choices(task: Task, example: Example) -> tuple[str, ...]:
    """A classification's labels, or a multiple choice's options in the format of its answer; () if there are none.

    Options are the letters (A), (B), ... or Completion A, ... of the input, from A on without a gap; or the marks
    before a colon at the beginning of lines: A: ..., 1: ..., Option 1: ...
    """
    if task.labels:
        offered = task.labels
    elif task.kind == "multiple_choice" and example.output.strip() in (marks := _marks(example.input)):
        offered = marks
    else:
        form = _ANSWER.fullmatch(example.output.strip()) if task.kind == "multiple_choice" else None
        if form is None:
            return ()
        letters = {first or second for first, second in _LETTERS.findall(example.input)}
        count = next(n for n in range(27) if chr(ord("A") + n) not in letters)
        offered = tuple(f"{form[1] or ''}{chr(ord('A') + n)}{form[3] or ''}" for n in range(count))
    accepted = {answer.strip() for answer in example.accepted}
    return offered if len(offered) > 1 and accepted <= set(offered) else ()


def _marks(text: str) -> tuple[str, ...]:
    """Marks before a colon at the beginning of lines: the last consecutive run that starts with A, 0 or 1."""
    run: tuple[str, ...] = ()
    for mark in _MARKED.findall(text):
        if run and ord(mark) == ord(run[-1]) + 1:
            run += (mark,)
        elif mark in "A01":
            run = (mark,)
    return run if len(run) > 1 else ()


@struct.dataclass
class ChoiceBatch:
    """Left-padded prompts without their last token, and the choices that may follow.

    `suffixes`, the input, is the prompt's last token and the choice; `targets` is the choice and the end-of-turn token;
    `weights` is 1 on targets and 0 on padding. A row of length 0 and a choice of weight 0 are padding.
    """

    tokens: Int[Array, "T R S"]
    lengths: Int[Array, "T R"]
    suffixes: Int[Array, "T R K A"]
    targets: Int[Array, "T R K A"]
    weights: Float[Array, "T R K A"]


@partial(jax.jit, static_argnums=0)
def choose_likeliest(
    decoder: Decoder, params: dict[str, Any], batch: ChoiceBatch, adapter: Adapter | None
) -> tuple[Int[Array, "T R"], Float[Array, "T R"]]:
    """The index of each row's likeliest choice, and its margin over the second in nats.

    The prompt is read once into a cache that all choices share. Logits are computed at the choices only.
    """
    room = batch.suffixes.shape[-1]
    _, cache = prefill(decoder, params, batch.tokens, batch.lengths, adapter, room)
    after = batch.lengths[..., None] + jnp.broadcast_to(jnp.arange(room, dtype=jnp.int32), (*batch.lengths.shape, room))

    def score(choice: tuple[Array, Array, Array]) -> Array:
        suffix, target, weight = choice
        output: Any = decoder.apply({"params": params}, suffix, adapter, positions=after, cache=cache)
        scores = logits(decoder.config, params, output[0])
        chosen = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(scores, axis=-1)
        return jnp.where(weight.any(-1), jnp.sum(weight * chosen, axis=-1), -jnp.inf)

    per_choice = jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), (batch.suffixes, batch.targets, batch.weights))
    likelihoods = jax.lax.map(score, per_choice)
    best = jnp.sort(likelihoods, axis=0)[-2:]
    return jnp.argmax(likelihoods, axis=0), best[-1] - best[0]
