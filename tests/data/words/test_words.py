import hashlib
import itertools
import random
from collections import Counter

import pytest

from t2l_jax.data import words
from t2l_jax.data.words.word_lists import CATEGORIES
from t2l_jax.data.words.wordings import TRAIN, UNSEEN

PRIMITIVES = (words.SELECTS, tuple(words.TRANSFORMS), tuple(words.FORMATS))
CATEGORY_OF = {word: name for name, members in CATEGORIES.items() for word in members}


@pytest.fixture(scope="module")
def tasks():
    """(training, unseen) tasks with a few examples each."""
    return words.train_tasks(30, 15), words.unseen_tasks(30, 15)


def digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def test_word_lists_are_single_lower_case_words_of_one_category():
    members = [word for category in CATEGORIES.values() for word in category]
    assert len(members) == len(set(members)) > 250
    assert all(word.isascii() and word.isalpha() and word.islower() and len(word) > 2 for word in members)
    assert len(CATEGORIES) == 14
    assert set(words.SELECTS) - set(words.POSITIONS) < set(CATEGORIES)


def test_split_is_a_partition_that_never_changes():
    train, unseen = words.split_combinations()
    assert (len(train), len(unseen)) == (280, 70)
    assert set(train) | set(unseen) == set(itertools.product(*PRIMITIVES))
    # A published hypernetwork was trained on one side: if this changes, its figures on the other side mean nothing.
    assert digest(sorted(map(words.task_name, unseen))) == "1c99727fa020fc75"


@pytest.mark.parametrize("kinds", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_every_primitive_and_every_pair_is_trained_on(kinds):
    train, _ = words.split_combinations()
    seen = Counter(tuple(combination[kind] for kind in kinds) for combination in train)
    expected = list(itertools.product(*(PRIMITIVES[kind] for kind in kinds)))
    assert sorted(seen) == sorted(expected)
    share = {names: seen[names] * len(expected) / 350 for names in expected}
    assert min(share.values()) >= (0.65 if len(kinds) == 1 else 0.25)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first_same_bare", "apple"),
        ("second_upper_quotes", '"TIGER"'),
        ("last_title_brackets", "[Piano]"),
        ("animal_initial_exclaim", "t!"),
        ("fruit_twice_answer", "Answer: apple apple"),
        ("colour_title_bullet", "- Blue"),
        ("vehicle_upper_hashtag", "#TRUCK"),
    ],
)
def test_answers(name, expected):
    listed = ["apple", "tiger", "blue", "truck", "piano"]
    assert words.answer(tuple(name.split("_")), listed) == expected


def test_inputs_hold_words_of_different_categories_and_one_that_is_asked_for(tasks):
    for task in tasks[0] + tasks[1]:
        select = task.name.split("_")[1]
        for example in task.train + task.test:
            listed = example.input.split(", ")
            categories = [CATEGORY_OF[word] for word in listed]
            assert len(listed) in (4, 5)
            assert len(set(categories)) == len(categories)
            assert select in words.POSITIONS or select in categories
            assert example.output == words.answer(tuple(task.name.split("_")[1:]), listed)
            assert example.accepted == (example.output,)


def test_no_test_list_is_a_reordering_of_a_training_list(tasks):
    def lists(split):
        return {frozenset(e.input.split(", ")) for task in tasks[0] + tasks[1] for e in getattr(task, split)}

    assert len(lists("train")) > 9000
    assert not lists("train") & lists("test")


def test_examples_depend_on_task_split_and_index_alone(tasks):
    longer = words.build_task(("animal", "upper", "brackets"), 60, 40, "train")
    (shorter,) = (task for task in tasks[0] + tasks[1] if task.name == longer.name)
    assert longer.train[:30] == shorter.train
    assert longer.test[:15] == shorter.test
    assert longer.descriptions == shorter.descriptions
    assert digest(e.input for e in longer.train) == "6b0d980e0c6307ea"


def test_the_word_asked_for_stands_anywhere():
    task = words.build_task(("fruit", "same", "bare"), 1000, 0, "train")
    places = Counter(example.input.split(", ").index(example.output) for example in task.train)
    assert all(180 < places[place] < 270 for place in range(4))
    assert 60 < places[4] < 140  # half of the lists have a fifth word
    chosen = Counter(example.output for example in task.train)
    assert len(chosen) == len(CATEGORIES["fruit"])


def test_transforms_and_formats_never_give_the_same_answer():
    for word in CATEGORY_OF:
        outputs = {f(t(word)) for t in words.TRANSFORMS.values() for f in words.FORMATS.values()}
        assert len(outputs) == 5 * 7


@pytest.mark.parametrize("select", words.SELECTS)
def test_selects_rarely_agree(select):
    task = words.build_task((select, "same", "bare"), 400, 0, "train")
    for other in set(words.SELECTS) - {select}:
        everywhere = other in words.POSITIONS
        pairs = [(e.output, e.input.split(", ")) for e in task.train]
        pairs = [(out, listed) for out, listed in pairs if everywhere or other in map(CATEGORY_OF.get, listed)]
        agree = [out == words.answer((other, "same", "bare"), listed) for out, listed in pairs]
        assert len(agree) > 50
        assert sum(agree) < 0.4 * len(agree), other


def test_uses_say_what_may_be_trained_on(tasks):
    assert {task.use for task in tasks[0]} == {"train"}
    assert {task.use for task in tasks[1]} == {"test"}


def test_wordings_are_split_by_template_phrase_and_step():
    assert not set(TRAIN.templates) & set(UNSEEN.templates)
    for train, unseen in zip(TRAIN[1:], UNSEEN[1:], strict=True):
        assert set(train) == set(unseen)
        for name, forms in train.items():
            assert not {*forms.phrases, *forms.steps} & {*unseen[name].phrases, *unseen[name].steps}, name
            assert len(set(forms.phrases)) == len(forms.phrases) >= 8
            assert len(set(unseen[name].phrases)) >= 3
    for kind, names in enumerate(PRIMITIVES):
        assert set(TRAIN[1 + kind]) == set(names)


def test_no_phrase_belongs_to_two_primitives():
    for side in (TRAIN, UNSEEN):
        phrases = Counter(p for kind in side[1:] for forms in kind.values() for p in (*forms.phrases, *forms.steps))
        assert phrases.most_common(1)[0][1] == 1


def test_descriptions_are_many_distinct_and_well_formed(tasks):
    for task in tasks[0] + tasks[1]:
        assert len(set(task.descriptions)) == len(task.descriptions) == words.TRAIN_WORDINGS >= 64
        assert len(set(task.unseen_descriptions)) == len(task.unseen_descriptions) == words.UNSEEN_WORDINGS >= 16
        for text in task.descriptions + task.unseen_descriptions:
            assert not text[0].islower(), text
            assert text.endswith("."), text
            assert "{" not in text
            assert "  " not in text
            assert ".." not in text


def test_no_description_is_on_both_sides_or_means_two_tasks(tasks):
    everything = tasks[0] + tasks[1]
    train = {text for task in everything for text in task.descriptions}
    unseen = {text for task in everything for text in task.unseen_descriptions}
    assert not train & unseen
    meanings = Counter(text for task in everything for text in {*task.descriptions, *task.unseen_descriptions})
    assert meanings.most_common(1)[0][1] == 1


def test_descriptions_mention_every_primitive_that_is_not_a_default(tasks):
    for task in random.Random(0).sample(tasks[0] + tasks[1], 60):
        for kind, name in enumerate(task.name.split("_")[1:]):
            for side, texts in ((TRAIN, task.descriptions), (UNSEEN, task.unseen_descriptions)):
                forms = side[1 + kind][name]
                mentions = [any(p.lower() in text.lower() for p in (*forms.phrases, *forms.steps)) for text in texts]
                if name in words.DEFAULTS:
                    assert 0.1 < sum(mentions) / len(mentions) < 1 or side is UNSEEN, task.name
                else:
                    assert all(mentions), task.name


def test_wordings_never_change(tasks):
    """The unseen wordings of a published hypernetwork's table must stay those it was measured on."""
    assert digest(text for task in tasks[1] for text in task.unseen_descriptions) == "7fc1d68f1f468927"
