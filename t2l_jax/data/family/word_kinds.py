"""Kinds of instances made of words and of letters: a list of words, a row of letters."""

from collections.abc import Callable
from random import Random

from t2l_jax.data.family.primitive import Kind, select
from t2l_jax.data.words.word_lists import CATEGORIES

VOWELS = "AEIOU"
NAMED = ("animal", "fruit", "colour", "job", "clothing")


def draw_words(stream: Random) -> tuple[str, ...]:
    """Five words, one of each category of NAMED, in random order, of which one is the longest and one the shortest."""
    while True:
        words = [stream.choice(CATEGORIES[name]) for name in NAMED]
        lengths = sorted(map(len, words))
        if lengths[0] < lengths[1] and lengths[-2] < lengths[-1]:
            stream.shuffle(words)
            return tuple(words)


def draw_letters(stream: Random) -> tuple[str, ...]:
    """Six different capital letters, of which one is a vowel and stands neither first nor last."""
    letters = stream.sample([chr(code) for code in range(65, 91) if chr(code) not in VOWELS], k=5)
    letters.insert(stream.randint(1, 4), stream.choice(VOWELS))
    return tuple(letters)


def _of(category: str) -> Callable[[tuple[str, ...]], str]:
    return lambda words: next(word for word in words if word in CATEGORIES[category])


def _vowel_place(letters: tuple[str, ...]) -> int:
    return next(place for place, letter in enumerate(letters) if letter in VOWELS)


WORDS = Kind(
    "words",
    draw_words,
    ", ".join,
    (
        select("first", "word", lambda words: words[0]),
        select("second", "word", lambda words: words[1]),
        select("third", "word", lambda words: words[2]),
        select("fourth", "word", lambda words: words[3], held_out=True),
        select("last", "word", lambda words: words[-1]),
        select("longest", "word", lambda words: max(words, key=len)),
        select("shortest", "word", lambda words: min(words, key=len)),
        select("alphabet_first", "word", min),
        select("alphabet_last", "word", max, held_out=True),
        select("animal", "word", _of("animal")),
        select("fruit", "word", _of("fruit")),
        select("colour", "word", _of("colour")),
        select("clothing", "word", _of("clothing")),
        select("job", "word", _of("job"), held_out=True),
        select("first_two", "word", lambda words: words[:2], plural=True),
        select("ends", "word", lambda words: (words[0], words[-1]), plural=True),
        select("last_two", "word", lambda words: words[-2:], plural=True, held_out=True),
        select("all", "word", tuple, plural=True),
    ),
)

LETTERS = Kind(
    "letters",
    draw_letters,
    " ".join,
    (
        select("first", "letter", lambda letters: letters[0]),
        select("second", "letter", lambda letters: letters[1]),
        select("third", "letter", lambda letters: letters[2]),
        select("last", "letter", lambda letters: letters[-1]),
        select("vowel", "letter", lambda letters: letters[_vowel_place(letters)]),
        select("after_vowel", "letter", lambda letters: letters[_vowel_place(letters) + 1]),
        select("before_vowel", "letter", lambda letters: letters[_vowel_place(letters) - 1], held_out=True),
        select("alphabet_first", "letter", min),
        select("alphabet_last", "letter", max),
        select("first_three", "letter", lambda letters: letters[:3], plural=True),
        select("ends", "letter", lambda letters: (letters[0], letters[-1]), plural=True),
        select(
            "consonants",
            "letter",
            lambda letters: tuple(letter for letter in letters if letter not in VOWELS),
            plural=True,
        ),
        select("last_three", "letter", lambda letters: letters[-3:], plural=True, held_out=True),
    ),
)
