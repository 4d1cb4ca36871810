"""What the grown family is made of: a primitive is a function and its wordings, side by side in one record.

Wordings are written as one text: "a | b | c || d | e" means a, b and c for training, d and e held out. Three forms:

    phrases   of a select, a noun phrase: "the first word"; of the others, what fits behind "the word, ..." and behind
              "it must appear ...": "in capital letters"
    steps     imperatives: "write {it} in capital letters"; {it} and {its} become "each" and "each one's" of several
    nouns     of a transform only, a noun phrase around a select: "the first letter of {x}"
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple


class Texts(NamedTuple):
    """Wordings of one thing: `train` for training and `unseen`, which no training description ever uses."""

    train: tuple[str, ...]
    unseen: tuple[str, ...]

    def side(self, held_out: bool) -> tuple[str, ...]:
        return self.unseen if held_out else self.train


NO_TEXTS = Texts((), ())


def texts(written: str) -> Texts:
    """The two sides of "a | b || c"."""
    train, _, unseen = written.partition(" || ")
    return Texts(*(tuple(side.split(" | ")) if side else () for side in (train, unseen)))


@dataclass(frozen=True, eq=False)
class Primitive:
    """A select, order, transform or format: what it does, and how one says it.

    A select maps an instance to a value of the type `gives` (to a tuple of them if `plural`), an order a tuple of
    values to another, a transform a value of a type in `takes` to text, a format the text (or the texts) to the answer.
    A primitive that is `held_out` is in no training task. `computed` values are worked out rather than found.
    """

    name: str
    function: Callable[[Any], Any]
    phrases: Texts
    steps: Texts = NO_TEXTS
    nouns: Texts = NO_TEXTS
    gives: str = ""
    takes: frozenset[str] = frozenset()
    plural: bool = False
    computed: bool = False
    held_out: bool = False


def select(
    name: str,
    gives: str,
    function: Callable[[Any], Any],
    phrases: str,
    *,
    plural: bool = False,
    computed: bool = False,
    held_out: bool = False,
) -> Primitive:
    """A select; its phrases are noun phrases."""
    return Primitive(name, function, texts(phrases), gives=gives, plural=plural, computed=computed, held_out=held_out)


def modifier(
    name: str,
    function: Callable[[Any], Any],
    phrases: str,
    steps: str,
    nouns: str = "",
    takes: str = "",
    held_out: bool = False,
) -> Primitive:
    """An order, a transform (`takes`: names of types between spaces) or a format."""
    types = frozenset(takes.split())
    return Primitive(name, function, texts(phrases), texts(steps), texts(nouns), takes=types, held_out=held_out)


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of instance, the same for all of its tasks: every select has one clear answer on every instance.

    `draw` makes an instance and `show` writes it down; `indefinite` and `definite` are names for it in descriptions.
    """

    name: str
    draw: Callable[[Random], Any]
    show: Callable[[Any], str]
    indefinite: Texts
    definite: Texts
    selects: tuple[Primitive, ...]
