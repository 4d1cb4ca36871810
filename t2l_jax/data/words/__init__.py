"""A family of synthetic word tasks that needs no download: select x transform x format over lists of words.

An input is 4 or 5 words, each of another category: "tiger, apple, hammer, blue, piano". A task selects one of them (by
position, or by category), transforms it (UPPERCASE, first letter, ...) and formats it ([brackets], #hashtag, ...):
10 x 5 x 7 = 350 tasks, named like "words_animal_upper_brackets". The prompt is the list alone, so that only an adapter
can tell the model what to do.

- Unseen combinations: the fifth of the names with the smallest SHA-256; every primitive is in most training tasks too.
- Wordings: a description is a template filled with one wording of each primitive. Templates, phrases and steps are
  split by hand into TRAIN and UNSEEN (see wordings.py): an unseen description shares none of the three with training.
  Selects are always worded; "same" and "bare" are defaults, which a description may leave out.
- Examples: each (task, split) has its own random stream, whose i-th example never changes. A list is a test list when
  the CRC-32 of its sorted words is divisible by 4: in the whole family no test list is a reordering of a training list.
"""

import hashlib
import random
import zlib
from collections.abc import Callable
from functools import cache

from t2l_jax.data.tasks import Example, Task
from t2l_jax.data.words import wordings
from t2l_jax.data.words.word_lists import CATEGORIES

TRAIN_WORDINGS = 64
UNSEEN_WORDINGS = 16

POSITIONS: dict[str, int] = {"first": 0, "second": 1, "last": -1}
SELECTS: tuple[str, ...] = (*POSITIONS, "animal", "fruit", "colour", "vehicle", "job", "clothing", "body")
TRANSFORMS: dict[str, Callable[[str], str]] = {
    "same": lambda word: word,
    "upper": str.upper,
    "title": str.capitalize,
    "initial": lambda word: word[0],
    "twice": lambda word: f"{word} {word}",
}
FORMATS: dict[str, Callable[[str], str]] = {
    "bare": lambda text: text,
    "quotes": lambda text: f'"{text}"',
    "brackets": lambda text: f"[{text}]",
    "exclaim": lambda text: f"{text}!",
    "answer": lambda text: f"Answer: {text}",
    "bullet": lambda text: f"- {text}",
    "hashtag": lambda text: f"#{text}",
}
DEFAULTS = ("same", "bare")

Combination = tuple[str, str, str]  # the names of a select, a transform and a format


def tasks() -> dict[str, list[Task]]:
    """The family's splits: "train" and "unseen combinations"."""
    return {"train": train_tasks(), "unseen combinations": unseen_tasks()}


def train_tasks(n_train: int = 200, n_test: int = 50) -> list[Task]:
    """The training combinations, with `n_train` and `n_test` examples each."""
    return [build_task(combination, n_train, n_test, "train") for combination in split_combinations()[0]]


def unseen_tasks(n_train: int = 200, n_test: int = 50) -> list[Task]:
    """The combinations that are never trained on. Their training examples serve oracle adapters only."""
    return [build_task(combination, n_train, n_test, "test") for combination in split_combinations()[1]]


@cache
def split_combinations() -> tuple[tuple[Combination, ...], tuple[Combination, ...]]:
    """(training, unseen) combinations: the fifth with the smallest hashes of their names is unseen."""
    combinations = [(s, t, f) for s in SELECTS for t in TRANSFORMS for f in FORMATS]
    by_hash = sorted(combinations, key=lambda c: hashlib.sha256(task_name(c).encode()).digest())
    unseen = set(by_hash[: len(combinations) // 5])
    return tuple(c for c in combinations if c not in unseen), tuple(c for c in combinations if c in unseen)


def task_name(combination: Combination) -> str:
    """For instance "words_animal_upper_brackets"."""
    return "_".join(("words", *combination))


def build_task(combination: Combination, n_train: int, n_test: int, use: str) -> Task:
    """The task of a combination, with all its wordings."""
    return Task(
        name=task_name(combination),
        descriptions=_descriptions(combination, wordings.TRAIN, TRAIN_WORDINGS),
        unseen_descriptions=_descriptions(combination, wordings.UNSEEN, UNSEEN_WORDINGS),
        train=_examples(combination, "train", n_train),
        test=_examples(combination, "test", n_test),
        use=use,
    )


def answer(combination: Combination, words: list[str]) -> str:
    """The right answer for a list of words. For a select by category the list holds exactly one word of it."""
    select, transform, format_ = combination
    if select in POSITIONS:
        word = words[POSITIONS[select]]
    else:
        (word,) = (w for w in words if w in CATEGORIES[select])
    return FORMATS[format_](TRANSFORMS[transform](word))


def _examples(combination: Combination, split: str, n: int) -> tuple[Example, ...]:
    stream = random.Random(f"{task_name(combination)}/{split}")  # seeded by SHA-512 of the text: same everywhere
    examples: list[Example] = []
    while len(examples) < n:
        words = _draw_list(stream, combination[0])
        is_test = zlib.crc32(" ".join(sorted(words)).encode()) % 4 == 0
        if is_test == (split == "test"):
            output = answer(combination, words)
            examples.append(Example(", ".join(words), output, (output,)))
    return tuple(examples)


def _draw_list(stream: random.Random, select: str) -> list[str]:
    """4 or 5 words of different categories in random order, one of them of the category that `select` names, if any."""
    categories = stream.sample(list(CATEGORIES), k=stream.randint(4, 5))
    if select not in POSITIONS and select not in categories:
        categories[stream.randrange(len(categories))] = select
    return [stream.choice(CATEGORIES[category]) for category in categories]


def _descriptions(combination: Combination, words: wordings.Wordings, n: int) -> tuple[str, ...]:
    """`n` different descriptions, all from one side of the split of wordings."""
    stream = random.Random(task_name(combination))
    descriptions: dict[str, None] = {}  # an ordered set
    while len(descriptions) < n:
        descriptions[_describe(stream, combination, words)] = None
    return tuple(descriptions)


def _describe(stream: random.Random, combination: Combination, words: wordings.Wordings) -> str:
    select, transform, format_ = combination
    forms = {transform: words.transforms[transform], format_: words.formats[format_]}
    mentioned = [form for name, form in forms.items() if name not in DEFAULTS or stream.random() < 0.5]
    style = " and ".join(stream.choice(form.phrases) for form in mentioned)
    text = stream.choice(words.templates).format(
        select=stream.choice(words.selects[select].phrases),
        style=f", {style}" if style else "",
        then="".join(f", then {stream.choice(form.steps)}" for form in mentioned),
        transform=stream.choice(forms[transform].phrases),
        format=stream.choice(forms[format_].phrases),
        transform_step=stream.choice(forms[transform].steps),
        format_step=stream.choice(forms[format_].steps),
    )
    return _capitalise_sentences(text)


def _capitalise_sentences(text: str) -> str:
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))
