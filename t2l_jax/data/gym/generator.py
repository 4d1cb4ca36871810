"""What a task of reasoning-gym is: a generator, how its instance is shown alone, and its wordings."""

from collections.abc import Callable
from typing import Any, NamedTuple

Facts = dict[str, Any]  # what a generator says of an item: the parts of its question, and its solution


class GymTask(NamedTuple):
    """A generator with settings, and what it is told apart by.

    `show` writes the instance alone, without the question around it. `keep` leaves items out, where a generator mixes
    several tasks. `answer` replaces the generator's own answer. `wordings` are separated by bars; the last
    UNSEEN_WORDINGS are never trained on.
    """

    name: str
    generator: str
    settings: dict[str, Any]
    show: Callable[[Facts], str]
    wordings: str
    answer: Callable[[Facts], str] | None = None
    keep: Callable[[Facts], bool] = lambda facts: True
