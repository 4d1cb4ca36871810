"""How people say what a primitive does: the files of the folder `wordings`, by group and name.

A group is a kind of instance (its selects) or one of "transforms", "formats", "joins" and "orders". A thing has several
forms of wordings, on the side `train` and on the side `unseen`, which no training description ever uses:

    phrases   of a select, a noun phrase: "the first word"; of the others, what fits behind "the word, ..." and behind
              "it must appear ...": "in capital letters"
    steps     imperatives: "write {it} in capital letters"; {it} and {its} become "each" and "each one's" of several
    nouns     of a transform only, a noun phrase around a select: "the first letter of {x}"
    indefinite, definite     of a kind's `input`, names for an instance: "a list of words", "the words"
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


def wordings(group: str, name: str, form: str, held_out: bool) -> tuple[str, ...]:
    """The wordings of one thing in one form, on one side; none where the thing has no such form."""
    return tuple(_read(group)[name]["unseen" if held_out else "train"].get(form, ()))


@cache
def _read(group: str) -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "wordings" / f"{group}.toml").read_text("utf-8"))
