"""OpenAI's replies, whole or in chunks, to requests for chat and text."""

import math
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from t2l_jax.decoder.detokenize import UNFINISHED, Detokenizer
from t2l_jax.serving.choices import Choices, Delta
from t2l_jax.serving.engine import TokenScore
from t2l_jax.serving.schemas import ChatCompletion, TextCompletion

WORST = -9999.0  # in place of the logarithm of zero, which JSON cannot have


class Shape:
    """How replies look; one for chat, one for text."""

    kind = chunk = ""
    prefix = ""

    def __init__(self, choices: Choices) -> None:
        self.choices, self.body = choices, choices.body
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": self.body.model,
        }

    def first(self) -> Iterator[dict[str, Any]]:
        """Choices of chunks before the first delta."""
        return iter(())

    def piece(self, delta: Delta) -> dict[str, Any]:
        """The choice of a chunk."""
        raise NotImplementedError

    def whole(self, index: int, text: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        """A choice of a reply in one piece."""
        raise NotImplementedError

    async def reply(self) -> dict[str, Any]:
        """The reply in one piece."""
        found: list[list[Delta]] = [[] for _ in self.choices.prompts]
        async for delta in self.choices.deltas():
            found[delta.index].append(delta)
        choices = [
            self.whole(index, "".join(delta.text for delta in own), own)
            | {"index": index, "finish_reason": own[-1].finish}
            for index, own in enumerate(found)
        ]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.choices.usage.body()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The reply in chunks."""
        head, usage = {**self._head, "object": self.chunk}, self.body.stream_options.include_usage
        more = {"usage": None} if usage else {}
        for choice in self.first():
            yield {**head, "choices": [choice], **more}
        async for delta in self.choices.deltas():
            choice = self.piece(delta) | {"index": delta.index, "finish_reason": delta.finish}
            yield {**head, "choices": [choice], **more}
        if usage:
            yield {**head, "choices": [], "usage": self.choices.usage.body()}


class ChatShape(Shape):
    """Replies of /v1/chat/completions."""

    kind, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self.choices.prompts)):
            delta = {"role": "assistant", "content": ""}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, delta: Delta) -> dict[str, Any]:
        return {"delta": {"content": delta.text} if delta.text else {}, "logprobs": self._logprobs([delta])}

    def whole(self, index: int, text: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(deltas)}

    def _logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        body = self.body
        assert isinstance(body, ChatCompletion)
        if not body.logprobs:
            return None
        content = [
            self._token(placed.score.token, placed.score.logprob)
            | {"top_logprobs": [self._token(*pair) for pair in placed.score.best[: body.top_logprobs]]}
            for delta in deltas
            for placed in delta.placed
            if not placed.stops
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self.choices.tokenizer, token)
        whole = None if UNFINISHED in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": whole}


class TextShape(Shape):
    """Replies of /v1/completions."""

    kind = chunk = "text_completion"
    prefix = "cmpl"

    def first(self) -> Iterator[dict[str, Any]]:
        assert isinstance(self.body, TextCompletion)
        if self.body.echo and self.body.logprobs is None:
            for index, prompt in enumerate(self.choices.prompts):
                yield {"index": index, "text": prompt.text, "logprobs": None, "finish_reason": None}

    def piece(self, delta: Delta) -> dict[str, Any]:
        text = delta.text if not delta.prompt else self.choices.prompts[delta.index].text
        return {"text": text, "logprobs": self._logprobs(delta.index, [delta])}

    def whole(self, index: int, text: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        return {"text": self._echoed(index) + text, "logprobs": self._logprobs(index, deltas)}

    def _echoed(self, index: int) -> str:
        assert isinstance(self.body, TextCompletion)
        return self.choices.prompts[index].text if self.body.echo else ""

    def _logprobs(self, index: int, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        body, tokenizer = self.body, self.choices.tokenizer
        assert isinstance(body, TextCompletion)
        if body.logprobs is None:
            return None
        start = len(self._echoed(index))
        own = [(placed.score, start + placed.offset) for delta in deltas for placed in delta.placed]
        scores = [(score, offset) for delta in deltas for score, offset in _places(tokenizer, delta.prompt)] + own
        tops: list[dict[str, float] | None] = []
        for score, _ in scores:
            top: dict[str, float] = {}
            for token, logprob in [*score.best[: body.logprobs], (score.token, score.logprob)]:
                top.setdefault(token_text(tokenizer, token), _finite(logprob))
            tops.append(top if score.best else None)
        return {
            "tokens": [token_text(tokenizer, score.token) for score, _ in scores],
            "token_logprobs": [_finite(score.logprob) if score.best else None for score, _ in scores],
            "top_logprobs": tops,
            "text_offset": [offset for _, offset in scores],
        }


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token alone as text, special ones as they are written."""
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _places(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[TokenScore]) -> list[tuple[TokenScore, int]]:
    """A prompt's tokens, and where the text of each starts."""
    pieces, length, found = Detokenizer(tokenizer), 0, []
    for score in prompt:
        found.append((score, length))
        length += len(pieces.add(score.token))
    return found


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else WORST
