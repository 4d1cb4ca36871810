"""Which combinations of primitives the family holds, and which of them are for training.

A task combines a kind of instance, a select, an order (of selects of several values only), a transform and a format.
All of this is decided by the SHA-256 of names, so that it stays as it is when primitives are added beside it:

- every select with every transform of its type (and every order) is a task with the default format, and with about a
  third of the other formats;
- a combination that uses a held-out primitive belongs to the unseen primitives; of those the family takes fewer;
- of the others, a tenth are the unseen combinations: each of their primitives is trained on in other company.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from t2l_jax.data.family.formats import BARE, COMMA, FORMATS, JOINS, ORDERS
from t2l_jax.data.family.number_kinds import NUMBERS, VARIABLES
from t2l_jax.data.family.primitive import Kind, Primitive
from t2l_jax.data.family.record_kinds import DATES, PEOPLE_LISTS, PRODUCT_LISTS
from t2l_jax.data.family.sentence_kinds import SENTENCES
from t2l_jax.data.family.transforms import TRANSFORMS
from t2l_jax.data.family.word_kinds import LETTERS, WORDS

KINDS: tuple[Kind, ...] = (WORDS, LETTERS, SENTENCES, NUMBERS, VARIABLES, DATES, PRODUCT_LISTS, PEOPLE_LISTS)
SPLITS = ("train", "unseen combinations", "unseen primitives")

# Of several values only the short transforms, or else answers get long.
SEVERAL = ("same", "upper", "lower", "title", "initial", "plus_one", "double", "next_letter")

# What part is kept of the combinations with another format than the default, and of those with a held-out primitive.
_KEPT_SINGLE, _KEPT_SEVERAL = 0.36, 0.30
_KEPT_UNSEEN_SINGLE, _KEPT_UNSEEN_SEVERAL = 0.04, 0.03
_UNSEEN_COMBINATIONS = 0.1


class Combination(NamedTuple):
    """The primitives of a task; `order` is None where the select gives one value."""

    kind: Kind
    select: Primitive
    order: Primitive | None
    transform: Primitive
    format: Primitive

    @property
    def name(self) -> str:
        """For instance "records.oldest.name.upper.brackets" or "words.ends.reversed.same.slash"."""
        return ".".join((self.kind.name, *(primitive.name for primitive in self.primitives)))

    @property
    def primitives(self) -> tuple[Primitive, ...]:
        return tuple(part for part in self[1:] if isinstance(part, Primitive))

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """For each of select, order, transform and format the group and name under which `wordings` has it."""
        groups = (self.kind.name, "orders", "transforms", "joins" if self.select.plural else "formats")
        named = zip(self._fields[1:], groups, self[1:], strict=True)
        return {part: (group, primitive.name) for part, group, primitive in named if isinstance(primitive, Primitive)}

    @property
    def is_held_out(self) -> bool:
        return any(primitive.held_out for primitive in self.primitives)

    @property
    def is_default(self) -> bool:
        """Whether the answer is written without any decoration."""
        return self.format in (BARE, COMMA)


@cache
def combinations() -> dict[str, tuple[Combination, ...]]:
    """The combinations of each split, in a fixed order."""
    chosen: dict[str, list[Combination]] = {split: [] for split in SPLITS}
    for combination in _all():
        if _draw("kept", combination) < _kept(combination):
            chosen[_split(combination)].append(combination)
    return {split: tuple(members) for split, members in chosen.items()}


def _all() -> Iterator[Combination]:
    for kind in KINDS:
        for select in kind.selects:
            for transform in TRANSFORMS:
                if select.gives not in transform.takes:
                    continue
                if not select.plural:
                    yield from (Combination(kind, select, None, transform, format_) for format_ in FORMATS)
                elif transform.name in SEVERAL:
                    orders = [order for order in ORDERS if select.gives in order.takes]
                    yield from (Combination(kind, select, o, transform, join) for o in orders for join in JOINS)


def _kept(combination: Combination) -> float:
    several = combination.select.plural
    if combination.is_held_out:
        return _KEPT_UNSEEN_SEVERAL if several else _KEPT_UNSEEN_SINGLE
    if combination.is_default:
        return 1.0
    return _KEPT_SEVERAL if several else _KEPT_SINGLE


def _split(combination: Combination) -> str:
    if combination.is_held_out:
        return "unseen primitives"
    return "unseen combinations" if _draw("split", combination) < _UNSEEN_COMBINATIONS else "train"


def _draw(purpose: str, combination: Combination) -> float:
    """A number in [0, 1) that depends on the purpose and the name alone."""
    digest = hashlib.sha256(f"{purpose}/{combination.name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
