"""Tasks of reasoning-gym: their split, their disjoint examples, and their answers worked out independently."""

import math
import random
import sys
from datetime import date, timedelta

import pytest

from t2l_jax.data import gym
from t2l_jax.data.tasks import check_unique
from t2l_jax.errors import UserError

N_TRAIN, N_TEST = 128, 32


@pytest.fixture(scope="module")
def splits():
    return gym.tasks()


@pytest.fixture(scope="module")
def by_name(splits):
    return {task.name.removeprefix("gym_"): task for tasks in splits.values() for task in tasks}


def test_the_splits_are_of_the_promised_sizes(splits):
    assert {name: len(tasks) for name, tasks in splits.items()} == {"train": 32, "unseen tasks": 8}
    for use, tasks in zip(("train", "test"), splits.values(), strict=True):
        assert {task.use for task in tasks} == {use}
        assert all((len(task.train), len(task.test)) == (N_TRAIN, N_TEST) for task in tasks)
    check_unique([task for tasks in splits.values() for task in tasks])


def test_every_name_of_the_unseen_is_a_task(by_name):
    assert set(by_name) > gym.UNSEEN_TASKS


def test_no_test_instance_is_a_training_instance_of_any_task(by_name):
    trained = {example.input for task in by_name.values() for example in task.train}
    tested = {example.input for task in by_name.values() for example in task.test}
    assert not trained & tested
    for task in by_name.values():
        assert len({example.input for example in (*task.train, *task.test)}) == N_TRAIN + N_TEST


def test_examples_are_short_and_their_answers_vary(by_name):
    for name, task in by_name.items():
        examples = (*task.train, *task.test)
        assert all(example.accepted == (example.output,) for example in examples), name
        assert all(0 < len(example.output) <= 60 and len(example.input) <= 200 for example in examples), name
        assert all(example.output == example.output.strip() for example in examples), name
        answers = [example.output for example in task.train]
        assert max(map(answers.count, set(answers))) < 0.9 * len(answers), name


def test_descriptions_are_many_different_and_partly_held_out(by_name):
    texts = [text for task in by_name.values() for text in (*task.descriptions, *task.unseen_descriptions)]
    assert len(set(texts)) == len(texts)
    for name, task in by_name.items():
        assert len(task.descriptions) >= 8, name
        assert len(task.unseen_descriptions) == 3, name
    for text in texts:
        assert text[0].isupper(), text
        assert text[-1] in ".?", text


def test_examples_do_not_depend_on_their_number_on_other_tasks_or_on_global_random_numbers(splits):
    random.seed(5)
    fewer = gym.tasks(n_train=5, n_test=2)
    for name, tasks in splits.items():
        for task, small in zip(tasks, fewer[name], strict=True):
            assert small.train == task.train[:5]
            assert small.test == task.test[:2]
            assert small.descriptions == task.descriptions


def _leap(year):
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _business_days(text):
    start, end = map(date.fromisoformat, text.split(" to "))
    return sum((start + timedelta(days=i)).weekday() < 5 for i in range((end - start).days + 1))


def _weekday_after(text):
    day, shift = text.removesuffix(" days").split(", ")
    return (date.fromisoformat(day) + timedelta(days=int(shift))).strftime("%A")


def _duration(text):
    start, end = (int(clock[:2]) * 60 + int(clock[3:]) for clock in text.split(" to "))
    return f"{(end - start) // 60:02d}:{(end - start) % 60:02d}"


def _factors(number):
    for prime in range(2, number + 1):
        if number % prime == 0:
            return [prime, *_factors(number // prime)]
    return []


def _numbers(text):
    return [int(part) for part in text.split(", ")]


def _sorted(text, reverse):
    return ", ".join(sorted(text.split(", "), key=float, reverse=reverse))


def _filtered(text, sign):
    limit, numbers = text.split(": ")
    return ", ".join(one for one in numbers.split(", ") if sign * float(one) > sign * float(limit))


def _matrix(text):
    return [line.split() for line in text.split("\n")]


def _shown(rows):
    return "\n".join(" ".join(row) for row in rows)


def _spiral(rows):
    return [*rows[0], *_spiral(list(zip(*rows[1:], strict=True))[::-1])] if rows else []


def _isomorphic(text):
    first, second = text.split()
    return len(set(zip(first, second, strict=True))) == len(set(first)) == len(set(second))


def _spellable(text):
    note, letters = text.split(" / ")
    return all(note.count(letter) <= letters.count(letter) for letter in note)


def _swaps(bits):
    wrong = {first: sum(bit != "01"[(i + first) % 2] for i, bit in enumerate(bits)) for first in (0, 1)}
    fits = [count // 2 for first, count in wrong.items() if bits.count("1") == (len(bits) + first) // 2]
    return min(fits)


def _letters(text):
    letter, phrase = text.split(": ", 1)
    return phrase.lower().count(letter)


def _nth_weekday(text):
    ordinal, weekday, month = text.replace(",", "").split()
    first = date.fromisoformat(f"{month}-01")
    days = [first + timedelta(days=i) for i in range(31)]
    days = [day.day for day in days if day.month == first.month and day.strftime("%A") == weekday]
    return days[{"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}[ordinal]]


ANSWERS = {
    "gcd": lambda text: math.gcd(*_numbers(text)),
    "lcm": lambda text: math.lcm(*_numbers(text)),
    "products": lambda text: math.prod(map(int, text.split(" * "))),
    "chain_sum": eval,
    "prime_factors": lambda text: " × ".join(map(str, _factors(int(text)))),
    "count_bits": lambda text: int(text).bit_count(),
    "to_binary": lambda text: f"{int(text):b}",
    "to_hex": lambda text: f"{int(text):x}",
    "hex_arithmetic": lambda text: hex(eval(text)),
    "duration": _duration,
    "weekday_after": _weekday_after,
    "weekday_of": lambda text: date.fromisoformat(text).strftime("%A"),
    "leap_year": lambda text: "Yes" if _leap(int(text)) else "No",
    "business_days": _business_days,
    "missing_angle": lambda text: 180 * (len(_numbers(text)) - 1) - sum(_numbers(text)),
    "sort_ascending": lambda text: _sorted(text, False),
    "sort_descending": lambda text: _sorted(text, True),
    "keep_larger": lambda text: _filtered(text, 1),
    "keep_smaller": lambda text: _filtered(text, -1),
    "spell_backward": lambda text: text[::-1],
    "reverse_words": lambda text: ", ".join(text.split(", ")[::-1]),
    "sort_words": lambda text: ", ".join(sorted(text.split(", "))),
    "sort_words_backward": lambda text: ", ".join(sorted(text.split(", "), reverse=True)),
    "count_letter": _letters,
    "ransom_note": _spellable,
    "isomorphic": _isomorphic,
    "alternating_swaps": _swaps,
    "rotate_clockwise": lambda text: _shown(zip(*_matrix(text)[::-1], strict=True)),
    "rotate_half": lambda text: _shown(row[::-1] for row in _matrix(text)[::-1]),
    "nth_weekday": _nth_weekday,
    "spiral": lambda text: " ".join(_spiral(_matrix(text))),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_those_of_the_instance_alone(by_name, name):
    for example in (*by_name[name].train, *by_name[name].test):
        assert str(ANSWERS[name](example.input)) == example.output, example.input


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install '\.\[reasoning-gym\]'"):
        gym.tasks()


def test_a_generator_that_has_not_enough_examples_is_named(monkeypatch):
    monkeypatch.setattr(gym, "DRAWS", 1)
    with pytest.raises(ValueError, match=r"chain_sum: \d+ training and \d+ test examples in 160 draws"):
        gym.tasks()
