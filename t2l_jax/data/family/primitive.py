"""What the synthetic tasks is made of: a primitive is a function, and `wordings` knows how people say it."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True, eq=False)
class Primitive:
    """A select, order, transform or format.

    A select maps an instance to a value of the type `gives` (to a tuple of them if `plural`), an order a tuple of
    values to another, a transform a value of a type in `takes` to text, a format the text (or the texts) to the answer.
    A primitive that is `held_out` is in no training task. `computed` values are worked out rather than found.
    """

    name: str
    function: Callable[[Any], Any]
    gives: str = ""
    takes: frozenset[str] = frozenset()
    plural: bool = False
    computed: bool = False
    held_out: bool = False


def select(
    name: str,
    gives: str,
    function: Callable[[Any], Any],
    *,
    plural: bool = False,
    computed: bool = False,
    held_out: bool = False,
) -> Primitive:
    """A select."""
    return Primitive(name, function, gives=gives, plural=plural, computed=computed, held_out=held_out)


def modifier(name: str, function: Callable[[Any], Any], *, takes: str = "", held_out: bool = False) -> Primitive:
    """An order, a transform (`takes`: names of types between spaces) or a format."""
    return Primitive(name, function, takes=frozenset(takes.split()), held_out=held_out)


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of instance, the same for all of its tasks: every select has one clear answer on every instance.

    `draw` makes an instance and `show` writes it down.
    """

    name: str
    draw: Callable[[Random], Any]
    show: Callable[[Any], str]
    selects: tuple[Primitive, ...]
