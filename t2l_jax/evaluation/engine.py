"""Batched answering: rows of different tasks are answered together, each through its own adapter.

An answer does not depend on the batch that its row is in. Batching changes the rounding of the logits (by about 1e-4 in
float32), which matters only if the best two tokens, or choices, are nearly equal. So every row reports its margin, and
a row with a margin below `TIE` is recomputed in a batch of its own, which is the same in every run.

Long answers do not hold up short ones: answers grow in segments, and an unfinished row joins others like it for its
next segment, where its prompt and what it has generated so far are read again.

Axes: T tasks (adapters) of a batch, R rows of one, S prompt, K choices, A tokens of a choice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from t2l_jax.decoder.generation import NO_TOKEN, Params, greedy
from t2l_jax.decoder.padding import bucket, check_tokens, pad_rows, power_of_two, power_of_two_within, prompt_bucket
from t2l_jax.evaluation.choices import ChoiceBatch, choose_likeliest
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter

TIE = 1e-3  # margin in logits or nats: ten times the rounding error of SmolLM2's logits in float32
SEGMENT = 16  # new tokens in a row's first segment; each further one is four times longer and compiles once
LONGEST_SEGMENT = 256
ROWS = 4  # rows of one adapter in a batch, at most
ADAPTERS = 64  # in a batch, at most: all are in memory while it is answered
BLOCK = 2048  # rows that are finished before the next ones begin


@dataclass(frozen=True)
class Answerer:
    """The weights that answer: decoder `params`, with one adapter for all rows or one by key.

    `identity` identifies the weights: equal identities give equal answers.
    """

    identity: str
    params: Params
    adapter: Adapter | None = None
    fetch: Callable[[Sequence[Any]], Adapter] | None = None  # adapters [T] by key


# A task's name or the text of its adapter; for an adapter of one example, description ("" if unread) and instance.
AdapterKey = str | tuple[str, str]


@dataclass(frozen=True)
class Question:
    """A prompt for one answerer and adapter: select among `choices` (their tokens) or, without any, generate."""

    weights: str  # the name of an answerer
    adapter: AdapterKey
    prompt: Int[np.ndarray, " n"]
    limit: int
    choices: tuple[tuple[int, ...], ...] = ()


Answer = list[int] | int  # tokens, or the index of a choice
Shape = tuple[str, bool, int, int, int]  # answerer, choices?, S, N or K, A


@dataclass
class _Pending:
    """A question in progress: the tokens generated so far, and the length of the next segment."""

    index: int
    question: Question
    written: list[int]
    segment: int = SEGMENT

    def shape(self) -> Shape:
        question, size = self.question, len(self.question.prompt) + len(self.written)
        if not question.choices:
            return question.weights, False, prompt_bucket(size), self.segment, 0
        longest = bucket(max(len(tokens) for tokens in question.choices) + 1)
        return question.weights, True, prompt_bucket(size - 1), bucket(len(question.choices)), longest


def answer_all(
    llm: LLM, answerers: dict[str, Answerer], questions: Sequence[Question], batch_tokens: int, end: int
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield lists of (index of the question, answer) as they finish.

    `batch_tokens` bounds the prompt tokens of a batch, padding included. `end` is the token that ends a choice.
    """
    rows = sorted((_Pending(i, question, []) for i, question in enumerate(questions)), key=lambda row: row.shape())
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    for number in np.random.default_rng(0).permutation(len(blocks)):  # shuffled for a fair estimate of the time left
        waiting = blocks[number]
        while waiting:
            unfinished: list[_Pending] = []
            for shape, batch in _batches(waiting, answerers, batch_tokens):
                done, rest = _advance(llm, answerers[shape[0]], shape, batch, end)
                unfinished += rest
                if done:
                    yield done
            waiting = unfinished


def _batches(
    rows: Sequence[_Pending], answerers: dict[str, Answerer], batch_tokens: int
) -> Iterator[tuple[Shape, list[list[_Pending]]]]:
    """Group rows of one shape into batches [T][R]: up to ROWS rows per adapter; one task [1][R] if all share one."""
    by_shape: dict[Shape, list[_Pending]] = {}
    for row in rows:
        by_shape.setdefault(row.shape(), []).append(row)
    for shape, alike in by_shape.items():
        room = power_of_two_within(batch_tokens // shape[2])  # `_run` pads to powers of two
        if answerers[shape[0]].fetch is None:
            for start in range(0, len(alike), room):
                yield shape, [alike[start : start + room]]
            continue
        by_adapter: dict[AdapterKey, list[_Pending]] = {}
        for row in alike:
            by_adapter.setdefault(row.question.adapter, []).append(row)
        most = max(len(own) for own in by_adapter.values())
        width = min(ROWS, room, power_of_two(most))
        chunks = [own[i : i + width] for own in by_adapter.values() for i in range(0, len(own), width)]
        size = min(ADAPTERS, room // width)
        for start in range(0, len(chunks), size):
            yield shape, chunks[start : start + size]


def _advance(
    llm: LLM, answerer: Answerer, shape: Shape, batch: list[list[_Pending]], end: int
) -> tuple[list[tuple[int, Answer]], list[_Pending]]:
    """Answer a batch, or generate its next segment: the finished answers, and the unfinished rows."""
    rows = [row for task in batch for row in task]
    answers, margins = _run(llm, answerer, shape, batch, end)
    for place, row in enumerate(rows):
        if margins[place] < TIE and len(rows) > 1:
            answers[place] = _run(llm, answerer, shape, [[row]], end)[0][0]
    done: list[tuple[int, Answer]] = []
    rest = []
    for row, new in zip(rows, answers, strict=True):
        if isinstance(new, int):
            done.append((row.index, new))
            continue
        room = min(row.segment, row.question.limit - len(row.written))
        row.written += new
        if len(new) < room or len(row.written) >= row.question.limit:
            done.append((row.index, row.written))
        else:
            row.segment = min(4 * row.segment, LONGEST_SEGMENT)
            rest.append(row)
    return done, rest


def _run(
    llm: LLM, answerer: Answerer, shape: Shape, batch: list[list[_Pending]], end: int
) -> tuple[list[Answer], np.ndarray]:
    """Answers and margins of a batch's rows, in order."""
    adapter, size = answerer.adapter, power_of_two(len(batch))
    if answerer.fetch is not None:
        names = [task[0].question.adapter for task in batch]
        adapter = answerer.fetch(names + names[:1] * (size - len(names)))
    width = power_of_two(max(len(task) for task in batch))
    stop = -1 if shape[1] else None  # a prompt's last token is read with each choice
    prompts = [[np.append(row.question.prompt, row.written).astype(np.int32)[:stop] for row in task] for task in batch]
    tokens, lengths = pad_rows(prompts, (size, width, shape[2]))
    places = [(t, r) for t, task in enumerate(batch) for r in range(len(task))]
    rows = [row for task in batch for row in task]
    answers: list[Answer] = []
    check_tokens(tokens, llm.config.vocab_size)
    if shape[1]:
        filled = _choice_batch(tokens, lengths, places, rows, shape, end)
        check_tokens(np.asarray(filled.targets), llm.config.vocab_size)
        chosen, margins = jax.device_get(choose_likeliest(llm.decoder, answerer.params, filled, adapter))
        answers += [int(chosen[place]) for place in places]
    else:
        limits = np.zeros_like(lengths)
        for place, row in zip(places, rows, strict=True):
            limits[place] = min(row.segment, row.question.limit - len(row.written))
        new, margins = jax.device_get(
            greedy(llm.decoder, answerer.params, tokens, lengths, limits, shape[3], adapter, llm.stop_ids)
        )
        answers += [[int(token) for token in new[place] if token != NO_TOKEN] for place in places]
    return answers, np.array([margins[place] for place in places])


def _choice_batch(
    tokens: np.ndarray,
    lengths: np.ndarray,
    places: Sequence[tuple[int, int]],
    rows: Sequence[_Pending],
    shape: Shape,
    end: int,
) -> ChoiceBatch:
    """Every row's choices after its prompt, padded to the batch's K and A."""
    size = (*lengths.shape, *shape[3:])
    suffixes, targets = np.zeros(size, np.int32), np.zeros(size, np.int32)
    weights = np.zeros(size, np.float32)
    for place, row in zip(places, rows, strict=True):
        for k, choice in enumerate(row.question.choices):
            target = (*choice, end)
            targets[place][k, : len(target)] = target
            suffixes[place][k, : len(target)] = (row.question.prompt[-1], *choice)
            weights[place][k, : len(target)] = 1
    return ChoiceBatch(*(jax.numpy.asarray(x) for x in (tokens, lengths, suffixes, targets, weights)))
