"""Tokens to text, one by one as they come."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character whose last ones have not come yet
LONGEST_WINDOW, KEPT = 64, 16  # tokens


def detokenize(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without special ones."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Detokenizer:
    """The text of `detokenize` in pieces, of whole characters.

    A token's text depends on those before it, so some of these are read again; but not all, which would take ever
    longer. Only where a tokenizer of pieces writes bytes that turn out to be no UTF-8, `detokenize` takes back what has
    been text until then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._written = ""  # of the window's text

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._window.append(token)
        text = detokenize(self._tokenizer, self._window)
        if text.endswith(UNFINISHED):
            return ""
        piece = text[len(self._written) :]
        if len(self._window) >= LONGEST_WINDOW:
            del self._window[:-KEPT]
            text = detokenize(self._tokenizer, self._window)
        self._written = text
        return piece

    def rest(self) -> str:
        """At the end: what stands for a character that was never finished."""
        return detokenize(self._tokenizer, self._window)[len(self._written) :]
