"""Kinds of instances made of words and of letters: a list of words, a row of letters."""

from collections.abc import Callable
from random import Random

from t2l_jax.data.family.primitive import Kind, select, texts
from t2l_jax.data.word_lists import CATEGORIES

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
    texts(
        "a list of words | five words | some words, separated by commas | a short list of words || a handful of words"
    ),
    texts("the list of words | the words | the word list | the line of words || the given words | these words"),
    (
        select(
            "first",
            "word",
            lambda words: words[0],
            "the first word | the word at the start of the list | the opening word | the word that comes first | the "
            "word listed first | the first of the words | word number one | the leading word || the 1st word | "
            "whichever word leads the list | the initial word",
        ),
        select(
            "second",
            "word",
            lambda words: words[1],
            "the second word | the word in second place | word number two | the word right after the first one | the "
            "word that comes second | the second of the words | the word listed second || the 2nd word | the word "
            "directly following the first | the word at index two",
        ),
        select(
            "third",
            "word",
            lambda words: words[2],
            "the third word | the word in third place | word number three | the middle word of the list | the word "
            "that comes third | the third of the words | the word listed third || the 3rd word | the word directly "
            "following the second | the word in the centre of the list",
        ),
        select(
            "fourth",
            "word",
            lambda words: words[3],
            "the fourth word | the word in fourth place | word number four | the word that comes fourth | the fourth "
            "of the words | the word before the last one || the 4th word | the word directly following the third | "
            "the penultimate word",
            held_out=True,
        ),
        select(
            "last",
            "word",
            lambda words: words[-1],
            "the last word | the word at the end of the list | the final word | the word that comes last | the "
            "closing word | the last of the words | the word listed last || the 5th word | whichever word ends the "
            "list | the concluding word",
        ),
        select(
            "longest",
            "word",
            lambda words: max(words, key=len),
            "the longest word | the word with the most letters | the longest of the words | the word that has more "
            "letters than the others | the lengthiest word || the word of the greatest length | whichever word is "
            "longest",
        ),
        select(
            "shortest",
            "word",
            lambda words: min(words, key=len),
            "the shortest word | the word with the fewest letters | the shortest of the words | the word that has "
            "fewer letters than the others | the briefest word || the word of the smallest length | whichever word "
            "is shortest",
        ),
        select(
            "alphabet_first",
            "word",
            min,
            "the alphabetically first word | the word that comes first in the alphabet | the word that a dictionary "
            "would list first | the first word in alphabetical order || the word nearest to the start of the "
            "dictionary | the word that leads after sorting from A to Z",
        ),
        select(
            "alphabet_last",
            "word",
            max,
            "the alphabetically last word | the word that comes last in the alphabet | the word that a dictionary "
            "would list last | the last word in alphabetical order || the word nearest to the end of the dictionary",
            held_out=True,
        ),
        select(
            "animal",
            "word",
            _of("animal"),
            "the animal | the word that names an animal | the creature | the name of the animal | the beast | the "
            "animal among the words | the word for an animal || whichever word is an animal | the one animal | the "
            "living creature",
        ),
        select(
            "fruit",
            "word",
            _of("fruit"),
            "the fruit | the word that names a fruit | the name of the fruit | the fruit among the words | the piece "
            "of fruit | the word for a fruit || whichever word is a fruit | the one fruit | the kind of fruit",
        ),
        select(
            "colour",
            "word",
            _of("colour"),
            "the colour | the color | the word that names a colour | the name of the color | the hue | the colour "
            "among the words | the word for a colour || whichever word is a colour | the one colour | the color word",
        ),
        select(
            "clothing",
            "word",
            _of("clothing"),
            "the item of clothing | the garment | the piece of clothing | the word that names a garment | the "
            "clothing item | the word for something to wear || whichever word is a garment | the one item of "
            "clothing | the piece of apparel",
        ),
        select(
            "job",
            "word",
            _of("job"),
            "the job | the profession | the occupation | the word that names a job | the word for an occupation | "
            "the job among the words || whichever word is a profession | the job title | the one occupation",
            held_out=True,
        ),
        select(
            "first_two",
            "word",
            lambda words: words[:2],
            "the first two words | the two words at the start of the list | the two leading words | words one and "
            "two || the initial two words | the opening pair of words",
            plural=True,
        ),
        select(
            "ends",
            "word",
            lambda words: (words[0], words[-1]),
            "the first and the last word | the two outermost words | the words at both ends of the list | the first "
            "word and the last word || the opening and the closing word | the pair of words at the two ends",
            plural=True,
        ),
        select(
            "last_two",
            "word",
            lambda words: words[-2:],
            "the last two words | the two words at the end of the list | the two final words || the closing pair of "
            "words",
            plural=True,
            held_out=True,
        ),
        select(
            "all",
            "word",
            tuple,
            "all the words | all words of the list | all five words | all of the words || the complete set of words "
            "| each and every word",
            plural=True,
        ),
    ),
)

LETTERS = Kind(
    "letters",
    draw_letters,
    " ".join,
    texts("a row of letters | six letters | a line of capital letters | some letters || a sequence of letters"),
    texts(
        "the row of letters | the letters | the line of letters | the six letters || the given letters | these letters"
    ),
    (
        select(
            "first",
            "letter",
            lambda letters: letters[0],
            "the first letter | the letter at the start of the row | the letter that comes first | the leftmost "
            "letter | letter number one || the 1st letter | the letter on the far left",
        ),
        select(
            "second",
            "letter",
            lambda letters: letters[1],
            "the second letter | the letter in second place | the letter that comes second | letter number two || "
            "the 2nd letter | the letter right after the leftmost one",
        ),
        select(
            "third",
            "letter",
            lambda letters: letters[2],
            "the third letter | the letter in third place | the letter that comes third | letter number three || the "
            "3rd letter | the letter two places after the leftmost one",
        ),
        select(
            "last",
            "letter",
            lambda letters: letters[-1],
            "the last letter | the letter at the end of the row | the letter that comes last | the rightmost letter "
            "| the final letter || the 6th letter | the letter on the far right",
        ),
        select(
            "vowel",
            "letter",
            lambda letters: letters[_vowel_place(letters)],
            "the vowel | the only vowel | the letter that is a vowel | the vowel among the letters | the single "
            "vowel || whichever letter is a vowel | the one letter that is no consonant",
        ),
        select(
            "after_vowel",
            "letter",
            lambda letters: letters[_vowel_place(letters) + 1],
            "the letter that follows the vowel | the letter right after the vowel | the consonant just behind the "
            "vowel | the letter to the right of the vowel || the vowel's right-hand neighbour | the letter next "
            "after the vowel",
        ),
        select(
            "before_vowel",
            "letter",
            lambda letters: letters[_vowel_place(letters) - 1],
            "the letter that precedes the vowel | the letter right before the vowel | the consonant just ahead of "
            "the vowel | the letter to the left of the vowel || the vowel's left-hand neighbour",
            held_out=True,
        ),
        select(
            "alphabet_first",
            "letter",
            min,
            "the letter that is earliest in the alphabet | the letter closest to A | the alphabetically first letter "
            "|| the letter with the lowest place in the alphabet",
        ),
        select(
            "alphabet_last",
            "letter",
            max,
            "the letter that is latest in the alphabet | the letter closest to Z | the alphabetically last letter || "
            "the letter with the highest place in the alphabet",
        ),
        select(
            "first_three",
            "letter",
            lambda letters: letters[:3],
            "the first three letters | the three letters at the start of the row | the three leftmost letters || the "
            "opening three of the letters",
            plural=True,
        ),
        select(
            "ends",
            "letter",
            lambda letters: (letters[0], letters[-1]),
            "the first and the last letter | the two outermost letters | the letters at both ends of the row || the "
            "leftmost and the rightmost letter",
            plural=True,
        ),
        select(
            "consonants",
            "letter",
            lambda letters: tuple(letter for letter in letters if letter not in VOWELS),
            "the consonants | all the consonants | the letters that are not vowels | all letters but the vowel || "
            "the letters other than the vowel",
            plural=True,
        ),
        select(
            "last_three",
            "letter",
            lambda letters: letters[-3:],
            "the last three letters | the three letters at the end of the row | the three rightmost letters || the "
            "closing three of the letters",
            plural=True,
            held_out=True,
        ),
    ),
)
