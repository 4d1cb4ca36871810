"""Regular expressions of adapter configurations, which come from outside: matched as Python does, within a time.

Python's own engine can take longer than the universe exists. The package regex takes the same expressions and a limit
of time; what it understands differently, or unrolls when compiling, is refused.
"""

import math
import re
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from t2l_jax.errors import UserError
from t2l_jax.schema import shown

SECONDS = 2.0  # for all matches of one adapter: usual ones take milliseconds
_MAX_LENGTH = 5_000
_MAX_COUNT = 1_000  # of the numbers in braces, multiplied
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class Matcher:
    """Matches names against the expressions of one file's options, all within SECONDS."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._left = SECONDS

    def ends(self, option: str, pattern: str, name: str) -> bool:
        """Whether the pattern matches the whole name, or its end after a dot."""
        return self._run(option, pattern, rf"(.*\.)?({pattern})$", name, "match") is not None

    def fills(self, option: str, pattern: str, name: str) -> bool:
        """Whether the pattern matches the whole name."""
        return self._run(option, pattern, pattern, name, "fullmatch") is not None

    def layer(self, pattern: str | None, name: str) -> int | None:
        """The number after the first part of a name that layers_pattern matches; of None the first inner number."""
        expression = r".*?\.[^.]*\.(\d+)\." if pattern is None else rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."
        match = self._run("layers_pattern", pattern or "", expression, name, "match")
        return match and int(match[1] if pattern is None else match["idx"])

    def _run(self, option: str, pattern: str, expression: str, name: str, method: str) -> Any:
        where = f"{self._file}: field {option} holds {shown(pattern)}, "
        began = time.monotonic()
        try:
            return getattr(_compile(expression), method)(name, timeout=max(self._left, 1e-3))
        except TimeoutError as error:
            raise UserError(f"{where}which takes too long to match") from error
        except ValueError as error:
            raise UserError(f"{where}{error}") from error
        finally:
            self._left -= time.monotonic() - began


@lru_cache(4096)
def _compile(pattern: str) -> Any:
    """The compiled pattern. Raises ValueError that says what is wrong with it."""
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"a pattern of more than {_MAX_LENGTH:,} characters")
    counts = _COUNT.findall(pattern)
    if pattern.count("{") != len(counts) or "[:" in pattern:
        raise ValueError("a regular expression with braces or classes that only some programs understand")
    if math.prod(int((most or least or "1")[:9]) or 1 for least, most in counts) > _MAX_COUNT:
        raise ValueError("a regular expression that repeats too often")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(pattern)
            return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError, Warning) as error:
        raise ValueError(f"not a regular expression: {error}") from error
