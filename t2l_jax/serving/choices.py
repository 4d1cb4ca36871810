"""The choices of a request: jobs of the engine, and what they are told, as text."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from t2l_jax.decoder.chat_template import render_turns
from t2l_jax.decoder.detokenize import detokenize
from t2l_jax.errors import UserError
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter
from t2l_jax.serving.engine import Busy, Engine, Job, Reason, Ticket, TokenScore
from t2l_jax.serving.http import Refused, busy
from t2l_jax.serving.schemas import ChatCompletion, Completion, TextCompletion
from t2l_jax.serving.text import Placed, RowText

COLDEST = 1e-3  # a temperature below it is greedy

# What the engine's thread tells a choice: its index, scores, the end if it is one, whether the scores are the prompt's.
Told = tuple[int, Sequence[TokenScore], Reason | None, bool]


@dataclass(frozen=True)
class Prompt:
    """What a choice continues."""

    tokens: list[int]
    text: str = ""  # to be echoed


@dataclass(frozen=True)
class Delta:
    """What is new of a choice: text, its tokens, and why it ended if it did."""

    index: int
    text: str = ""
    placed: Sequence[Placed] = ()
    finish: str | None = None
    prompt: Sequence[TokenScore] = ()


@dataclass
class Usage:
    """Tokens read and written for a request."""

    prompt: int
    completion: int = 0

    def body(self) -> dict[str, int]:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


def prompts_of(llm: LLM, body: Completion) -> list[Prompt]:
    """The prompts of a request. Takes a while: not for the event loop. Raises UserError.

    A conversation without a system turn gets an empty one, as in training; one with its own is rendered as it is.
    """
    if isinstance(body, ChatCompletion):
        turns = [turn.plain() for turn in body.messages]
        own = any(turn["role"] == "system" for turn in turns)
        return [Prompt(llm.render(turns) if own else render_turns(llm.tokenizer, turns))]
    assert isinstance(body, TextCompletion)
    found = []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            found.append(Prompt(llm.tokenizer(prompt)["input_ids"], prompt))
        else:
            inside = all(token < llm.config.vocab_size for token in prompt)  # else the engine refuses it
            found.append(Prompt(prompt, detokenize(llm.tokenizer, prompt) if inside and body.echo else ""))
    return found


class Choices:
    """The choices of a request: `n` for each prompt, decoded together with whatever else the engine has.

    They decode in a `with` block. Raises Refused for what the engine cannot do.
    """

    def __init__(
        self,
        engine: Engine,
        llm: LLM,
        body: Completion,
        prompts: Sequence[Prompt],
        adapter: Adapter | None,
        seconds: float,
    ) -> None:
        self.body, self.prompts = body, [prompt for prompt in prompts for _ in range(body.n)]
        self.tokenizer = llm.tokenizer
        self.usage = Usage(sum(len(prompt.tokens) for prompt in prompts))
        self._engine, self._adapter, self._until = engine, adapter, time.monotonic() + seconds
        self._texts = [RowText(llm.tokenizer, body.stops) for _ in self.prompts]
        self._scored = isinstance(body, TextCompletion) and body.echo and body.best is not None
        self._nothing = body.most_tokens == 0
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        if self._nothing and not (isinstance(body, TextCompletion) and body.echo):
            raise Refused(400, "max_tokens is 0: ask for at least one token, or echo the prompt", "max_tokens")
        if len(self.prompts) > engine.limits.queue:
            raise Refused(400, f"{len(self.prompts)} choices are more than this server's {engine.limits.queue}", "n")
        self._counts = [self._room(prompt) for prompt in self.prompts]
        try:
            for prompt, count in zip(self.prompts, self._counts, strict=True):
                engine.check(prompt.tokens, count)
        except UserError as error:
            name = "messages" if isinstance(body, ChatCompletion) else "prompt"
            code = "context_length_exceeded" if "together" in str(error) else None
            raise Refused(400, str(error), name, code) from error

    def _room(self, prompt: Prompt) -> int:
        """How many tokens a choice may have: where nobody said, as many as there is room for."""
        if self.body.most_tokens is None:
            return max(1, min(self.body.default_tokens, self._engine.limits.context - len(prompt.tokens)))
        return max(1, self.body.most_tokens)

    def __enter__(self) -> "Choices":
        """Queue the jobs. Raises Refused if there is no room for all of them."""
        try:
            for job in self._jobs():
                self._tickets.append(self._engine.submit(job))
        except Busy as error:
            self._cancel()
            raise busy() from error
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what still decodes."""
        self._cancel()

    async def deltas(self) -> AsyncIterator[Delta]:
        """What happens, as it happens; a choice's last delta has a finish.

        Raises Refused if time is up before the first token, or the engine fails.
        """
        left = set(range(len(self._tickets)))
        while left:
            index, scores, reason, prompt = await self._told.get()
            if index not in left:
                continue
            if prompt:
                yield Delta(index, prompt=scores)
                continue
            delta = self._delta(index, scores, reason)
            if delta.finish is not None:
                left.remove(index)
                self._tickets[index].cancel()
            if delta.text or delta.placed or delta.finish is not None:
                yield delta

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _jobs(self) -> Iterator[Job]:
        body, told, loop = self.body, self._told, asyncio.get_running_loop()
        seed = secrets.randbits(31) if body.seed is None else body.seed

        def tell(index: int, prompt: bool, scores: Sequence[TokenScore], reason: Reason | None = None) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the request with it
                loop.call_soon_threadsafe(told.put_nowait, (index, scores, reason, prompt))

        for index, (prompt, count) in enumerate(zip(self.prompts, self._counts, strict=True)):
            yield Job(
                prompt.tokens,
                partial(tell, index, False),
                self._adapter,
                count,
                body.temperature if body.temperature >= COLDEST else 0.0,
                body.top_p,
                (seed + index % body.n) % 2**31,
                logprobs=body.best is not None,
                ignore_stops=body.ignore_eos,
                on_prompt=partial(tell, index, True) if self._scored else None,
                until=self._until,
            )

    def _delta(self, index: int, scores: Sequence[TokenScore], reason: Reason | None) -> Delta:
        text = self._texts[index]
        if reason == "error":
            raise Refused(500, "the model failed: the server's log says why")
        if reason == "late" and text.count == 0:
            raise Refused(504, "the time that a request may take was over before its first token", code="timeout")
        if self._nothing:
            return Delta(index, finish="length")
        new, placed = "", list[Placed]()
        for score in scores:
            self.usage.completion += 1
            if reason == "stop" and score is scores[-1]:
                text.add_stop(score)
                break
            more = text.add(score)
            new, placed = new + more[0], placed + more[1]
            if text.stopped:
                return Delta(index, new, placed, "stop")
        if reason is None:
            return Delta(index, new, placed)
        more = text.end()
        finish = "stop" if reason == "stop" or text.stopped else "length"
        return Delta(index, new + more[0], placed + more[1], finish)
