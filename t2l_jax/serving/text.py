"""What a client sees of a row: text as it comes, up to a stop string, and the tokens that it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from t2l_jax.decoder.detokenize import Detokenizer
from t2l_jax.serving.engine import TokenScore


@dataclass(frozen=True)
class Placed:
    """A token, and where its text starts in that of the row; one that `stops` the row has none."""

    score: TokenScore
    offset: int
    stops: bool = False


class StopFinder:
    """Text up to the first stop string that is complete.

    The end of a text that may be the beginning of a stop string is held back, so what comes out does not depend on the
    pieces that the text comes in.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        text = self._held + piece
        # The one that ends first; of several that end there the one that starts first.
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        begun = (
            size for stop in self._stops for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )  # fmt: skip
        held = max(begun, default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held


class RowText:
    """The visible text of a row, and its tokens with their places."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._pieces, self._finder = Detokenizer(tokenizer), StopFinder(stops)
        self.count = 0  # of tokens
        self._length = 0  # of the text so far, with what is held back
        self._shown = 0
        self._placed: list[Placed] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found: nothing more will be visible."""
        return self._finder.found

    def add(self, score: TokenScore) -> tuple[str, list[Placed]]:
        """The text that becomes visible with this token, and the tokens that start in it."""
        self.count += 1
        self._placed.append(Placed(score, self._length))
        piece = self._pieces.add(score.token)
        self._length += len(piece)
        return self._release(self._finder.add(piece))

    def add_stop(self, score: TokenScore) -> None:
        """Take note of the stop token that ends the row."""
        self.count += 1
        self._placed.append(Placed(score, self._length, stops=True))

    def end(self) -> tuple[str, list[Placed]]:
        """What is still to be shown when no more tokens come."""
        if self.stopped:
            return "", []
        text, _ = self._release(self._finder.add(self._pieces.rest()))
        text += "" if self.stopped else self._finder.rest()
        placed = [] if self.stopped else self._placed
        self._placed = []
        return text, placed

    def _release(self, text: str) -> tuple[str, list[Placed]]:
        self._shown += len(text)
        out = [placed for placed in self._placed if placed.offset < self._shown]
        self._placed = self._placed[len(out) :]
        return text, out
