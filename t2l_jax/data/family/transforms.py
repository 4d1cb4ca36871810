"""Transforms: from one selected value to text.

Types of values: "word" (lower case), "name" (with a capital), "number" (0 to 999), "year" and "letter" (a capital).
"""

from t2l_jax.data.family.primitive import Primitive, modifier

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ALL = "word name number year letter"


def number_words(number: int) -> str:
    """The number (0 to 999) in English words: 342 is "three hundred forty-two"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return f"{tens}-{_ONES[number % 10]}" if number % 10 else tens
    hundreds = f"{_ONES[number // 100]} hundred"
    return f"{hundreds} {number_words(number % 100)}" if number % 100 else hundreds


SAME = modifier("same", str, takes=_ALL)

TRANSFORMS: tuple[Primitive, ...] = (
    SAME,
    modifier("upper", str.upper, takes="word name"),
    modifier("lower", str.lower, takes="name letter"),
    modifier("title", str.capitalize, takes="word"),
    modifier("initial", lambda text: text[0], takes="word name"),
    modifier("last_letter", lambda text: text[-1], takes="word name"),
    modifier("first_three", lambda text: text[:3], takes="word name"),
    modifier("last_three", lambda text: text[-3:], takes="word name", held_out=True),
    modifier("length", lambda text: str(len(text)), takes="word name"),
    modifier("spelled", "-".join, takes="word name"),
    modifier("twice", lambda value: f"{value} {value}", takes=_ALL),
    modifier("thrice", lambda value: f"{value} {value} {value}", takes=_ALL, held_out=True),
    modifier("plus_one", lambda number: str(number + 1), takes="number year"),
    modifier("minus_one", lambda number: str(number - 1), takes="number year"),
    modifier("plus_two", lambda number: str(number + 2), takes="number year", held_out=True),
    modifier("plus_ten", lambda number: str(number + 10), takes="number year"),
    modifier("double", lambda number: str(number * 2), takes="number"),
    modifier("in_words", number_words, takes="number"),
    modifier("parity", lambda number: "odd" if number % 2 else "even", takes="number"),
    modifier("last_digit", lambda number: str(number)[-1], takes="number year"),
    modifier("next_letter", lambda letter: chr((ord(letter) - 64) % 26 + 65), takes="letter"),
    modifier("previous_letter", lambda letter: chr((ord(letter) - 66) % 26 + 65), takes="letter", held_out=True),
    modifier("alphabet_place", lambda letter: str(ord(letter) - 64), takes="letter"),
)
