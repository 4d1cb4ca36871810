"""Thousands of small tasks that need no download: select x order x transform x format over eight kinds of instances.

The kinds: lists of words, rows of letters, sentences, lists of numbers, variables, dates, products with amounts, and
records of persons. All tasks of a kind share one pool of instances, so that nothing in an instance tells the task: only
its description (that is, the adapter) can. Answers are short and exact.

- `primitive` says what a primitive is, a function. `word_kinds`, `sentence_kinds`, `number_kinds`, `record_kinds` hold
  the kinds with their selects; `transforms` and `formats` hold the rest.
- `wordings` reads how people say what each of them does, from the files of that name. Adding a part of tasks is adding
  a function and its wordings.
- `split` says which combinations there are, and which of them are training tasks.
- `phrasing` puts a combination into words.

Nothing here depends on the order of calls, on the machine, or on how many examples are asked for: the i-th example of a
task never changes. No instance of a test example is an instance of any training example.
"""

import zlib
from functools import cache
from random import Random
from typing import Any, NamedTuple

from t2l_jax.data.family import phrasing
from t2l_jax.data.family.primitive import Kind
from t2l_jax.data.family.split import Combination, combinations
from t2l_jax.data.tasks import Example, Task

TRAIN_WORDINGS = 64
UNSEEN_WORDINGS = 16

# Primes, so that every step through a pool meets all of its instances before it meets one again.
TRAIN_POOL, TEST_POOL = 4093, 509


class Pool(NamedTuple):
    """The instances of a kind on one side of the split of examples, as values and as text."""

    values: tuple[Any, ...]
    shown: tuple[str, ...]


def tasks(n_train: int = 64, n_test: int = 16) -> dict[str, list[Task]]:
    """The tasks of "train", "unseen combinations" and "unseen primitives", with `n_train` and `n_test` examples each.

    The training examples of the unseen tasks serve oracle adapters only. Takes some seconds; for a few tasks take some
    of `split.combinations()` and `build_task`.
    """
    return {
        name: [build_task(member, n_train, n_test, "train" if name == "train" else "test") for member in members]
        for name, members in combinations().items()
    }


def build_task(combination: Combination, n_train: int, n_test: int, use: str) -> Task:
    """The task of a combination, with all its wordings. At most TRAIN_POOL and TEST_POOL examples."""
    return Task(
        name=combination.name,
        descriptions=phrasing.descriptions(combination, TRAIN_WORDINGS),
        unseen_descriptions=phrasing.descriptions(combination, UNSEEN_WORDINGS, held_out=True),
        train=_examples(combination, pools(combination.kind)[0], n_train),
        test=_examples(combination, pools(combination.kind)[1], n_test),
        use=use,
    )


def answer(combination: Combination, instance: Any) -> str:
    """The right answer for an instance of the combination's kind."""
    value = combination.select.function(instance)
    if combination.order is None:
        return combination.format.function(combination.transform.function(value))
    values = combination.order.function(value)
    return combination.format.function([combination.transform.function(one) for one in values])


@cache
def pools(kind: Kind) -> tuple[Pool, Pool]:
    """The (training, test) instances of a kind. A text is a test instance if the CRC-32 of its parts is 0 modulo 8."""
    stream = Random(kind.name)
    train: dict[str, Any] = {}
    test: dict[str, Any] = {}
    while len(train) < TRAIN_POOL or len(test) < TEST_POOL:
        value = kind.draw(stream)
        text = kind.show(value)
        # Sorted characters: no test instance is a reordering of a training instance.
        side, size = (test, TEST_POOL) if zlib.crc32("".join(sorted(text)).encode()) % 8 == 0 else (train, TRAIN_POOL)
        if len(side) < size:
            side[text] = value
    return Pool(tuple(train.values()), tuple(train)), Pool(tuple(test.values()), tuple(test))


def _examples(combination: Combination, pool: Pool, n: int) -> tuple[Example, ...]:
    """`n` of the pool's instances, from a place and with a step of the task's own."""
    size = len(pool.values)
    if n > size:
        raise ValueError(f"{n} examples of a task, but there are {size} instances")
    stream = Random(f"{combination.name}/{size}")
    place, step = stream.randrange(size), stream.randrange(1, size)
    chosen = [(place + i * step) % size for i in range(n)]
    outputs = [answer(combination, pool.values[i]) for i in chosen]
    return tuple(Example(pool.shown[i], output, (output,)) for i, output in zip(chosen, outputs, strict=True))
