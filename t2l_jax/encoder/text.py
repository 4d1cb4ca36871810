"""What every text encoder is: text to z, the description of a task as the hypernetwork sees it.

z is the encoder's embedding, L2-normalised and multiplied by sqrt(d), in float32: its entries are of size one whatever
the encoder.

Axes: n texts, d embedding width.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from t2l_jax.errors import UserError

MAX_CHARACTERS = 20_000
CHUNK = 4096  # instances that are cached together: what an interrupted run need not embed again

log = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """Text to z. `name` is where it was loaded from, `adapter` the folder of its LoRA, `dim` the width d of z."""

    @property
    def name(self) -> str: ...

    @property
    def adapter(self) -> Path | None: ...

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """A hash of all its files, its adapter's included: equal fingerprints mean equal z."""
        ...

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text. With a cache folder, a collection of texts is embedded once and then read from there.

        Raises UserError for a text that `prepare` refuses.
        """
        ...


def prepare(text: str, where: str) -> str:
    """A description as encoders read it: trimmed, with a full stop if it ends in a letter.

    Raises UserError, starting with `where`, for a text that is empty, too long, or not valid Unicode.
    """
    text = text.strip()
    if not text:
        raise UserError(f"{where} is empty: say in a sentence what the task is")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: shorten it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where} holds half of a surrogate pair, which is no character: save it as UTF-8")
    return f"{text}." if text[-1].isalpha() else text


def embed_instances(encoder: "Encoder", texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
    """The z of each instance, the input of an example. Equal texts are embedded once; long ones lose their end.

    Raises UserError that names by its number an instance that is empty.
    """
    if isinstance(texts, str):
        raise TypeError("instances are a sequence of texts: put the one text into a list")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"instance {number} is empty: the adapter is made from its text, so give one")
    heads = [text.strip()[:MAX_CHARACTERS] for text in texts]
    distinct = list(dict.fromkeys(heads))
    places = {text: place for place, text in enumerate(distinct)}
    chunks = [distinct[start : start + CHUNK] for start in range(0, max(1, len(distinct)), CHUNK)]
    z = np.concatenate([encoder.embed(chunk, cache) for chunk in chunks])
    return z[np.asarray([places[text] for text in heads], int)]


def prepare_all(texts: Sequence[str]) -> list[str]:
    """`prepare` of each text, which an error calls by its number."""
    if isinstance(texts, str):
        raise TypeError("embed takes a sequence of texts: put the one text into a list")
    return [prepare(text, f"description {index + 1}") for index, text in enumerate(texts)]


def warn_of_cuts(name: str, most: int, texts: list[str], are_cut: Callable[[list[str]], list[bool]]) -> None:
    """Warn of texts of which an encoder of this name reads the first `most` tokens only; `are_cut` tells which."""
    # No token without a byte, but for a few marks at the ends.
    long = [index for index, text in enumerate(texts) if len(text.encode()) + 8 > most]
    flags = are_cut([texts[index] for index in long]) if long else []
    if cut := [index for index, flag in zip(long, flags, strict=True) if flag]:
        where = f"the first begins {texts[cut[0]][:60]!r}"
        count = f"{len(cut)} of {len(texts)} descriptions"
        log.warning("%s have more than the %d tokens that %s reads: %s", count, most, name, where)
