import hashlib
import re
import tomllib
from collections import Counter
from importlib import resources

import pytest

from t2l_jax.data import family, words
from t2l_jax.data.family import split
from t2l_jax.data.family.split import KINDS, SPLITS
from t2l_jax.data.family.wordings import wordings
from t2l_jax.data.words.word_lists import CATEGORIES

MEMBERS = {member.name: member for members in split.combinations().values() for member in members}


@pytest.fixture(scope="module")
def some():
    """Every 60th task of each split, with few examples."""
    return [
        family.build_task(member, 24, 8, "train" if name == "train" else "test")
        for name, members in split.combinations().items()
        for member in members[::60]
    ]


def digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def task_of(name):
    return family.build_task(MEMBERS[name], 40, 10, "train")


def one_of(text, category):
    (word,) = set(text.split(", ")) & set(CATEGORIES[category])
    return word


def numbers_in(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def people_in(text):
    return [tuple(row.split(", ")) for row in text.split("; ")]


MONTHS = {"January": "1", "February": "2", "March": "3", "April": "4", "May": "5", "June": "6", "July": "7",
          "August": "8", "September": "9", "October": "10", "November": "11", "December": "12"}  # fmt: skip
AFTER = dict(pairs_ for pairs_ in zip(
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    ["Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday"], strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("words.animal.upper.bare", lambda text: one_of(text, "animal").upper()),
        ("words.longest.length.bare", lambda text: str(max(len(word) for word in text.split(", ")))),
        ("words.alphabet_first.initial.bare", lambda text: sorted(text.split(", "))[0][0]),
        ("words.third.spelled.bare", lambda text: re.sub(r"(?<=.)(?=.)", "-", text.split(", ")[2])),
        ("words.all.reversed.same.comma", lambda text: ", ".join(text.split(", ")[::-1])),
        ("words.all.alphabetical.upper.comma", lambda text: ", ".join(sorted(text.upper().split(", ")))),
        ("letters.vowel.same.bare", lambda text: re.search("[AEIOU]", text)[0]),
        ("letters.after_vowel.lower.bare", lambda text: re.search("[AEIOU] (.)", text)[1].lower()),
        ("letters.first.alphabet_place.bare", lambda text: str("ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(text[0]) + 1)),
        ("letters.last.next_letter.bare", lambda text: "BCDEFGHIJKLMNOPQRSTUVWXYZA"[ord(text[-1]) - ord("A")]),
        ("letters.consonants.given.same.comma", lambda text: ", ".join(re.sub("[AEIOU] ", "", text).split())),
        ("sentences.who.same.bare", lambda text: re.search(r"(\w+) \w+ed |(\w+) (sold|bought|found|lost) ", text)),
        ("sentences.day.first_three.bare", lambda text: re.search(r"on (\w+)day", text, re.I)[1][:3]),
        ("numbers.largest.same.bare", lambda text: str(sorted(numbers_in(text))[4])),
        ("numbers.median.plus_one.bare", lambda text: str(sorted(numbers_in(text))[2] + 1)),
        ("numbers.last.parity.bare", lambda text: "even" if text[-1] in "02468" else "odd"),
        ("numbers.all.ascending.same.comma", lambda text: ", ".join(map(str, sorted(numbers_in(text))))),
        ("variables.a_plus_b.same.bare", lambda text: str(sum(numbers_in(text)[:2]))),
        ("variables.product.same.bare", lambda text: str(numbers_in(text)[0] * numbers_in(text)[1])),
        ("variables.gap.double.bare", lambda text: str(2 * abs(numbers_in(text)[0] - numbers_in(text)[1]))),
        ("dates.weekday.same.bare", lambda text: text.split(",")[0]),
        ("dates.month_number.same.bare", lambda text: MONTHS[text.split()[2]]),
        ("dates.next_weekday.same.bare", lambda text: AFTER[text.split(",")[0]]),
        ("dates.hour.plus_ten.bare", lambda text: str(int(text[-5:-3]) + 10)),
        ("products.most.same.bare", lambda text: max(text.split(", "), key=lambda row: int(row.split()[1])).split()[0]),
        ("products.first_two_total.same.bare", lambda text: str(sum(numbers_in(text)[:2]))),
        ("records.oldest.name.upper.bare", lambda text: max(people_in(text), key=lambda row: row[1])[0].upper()),
        ("records.second.city.lower.bare", lambda text: people_in(text)[1][2].lower()),
        ("records.ages.descending.same.comma", lambda text: ", ".join(sorted(re.findall(r"\d+", text), reverse=True))),
    ],
)
def test_answers_agree_with_plain_python_on_the_text(name, expected):
    task = task_of(name)
    for example in task.train + task.test:
        wanted = expected(example.input)
        if isinstance(wanted, re.Match):
            wanted = wanted[1] or wanted[2]
        assert example.output == wanted, example.input
        assert example.accepted == (example.output,)


def test_formats_and_joins():
    formats = {
        "bare": "x", "quotes": '"x"', "brackets": "[x]", "parens": "(x)", "braces": "{x}", "exclaim": "x!",
        "question": "x?", "period": "x.", "answer": "Answer: x", "bullet": "- x", "hashtag": "#x", "stars": "**x**",
        "json": '{"answer": "x"}', "tag": "<answer>x</answer>",
    }  # fmt: skip
    assert {primitive.name: primitive.function("x") for primitive in split.FORMATS} == formats
    joins = {"comma": "x, y", "space": "x y", "slash": "x/y", "hyphen": "x-y", "and": "x and y", "list": "[x, y]",
             "semicolon": "x; y"}  # fmt: skip
    assert {primitive.name: primitive.function(["x", "y"]) for primitive in split.JOINS} == joins


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "zero"),
        (12, "twelve"),
        (20, "twenty"),
        (42, "forty-two"),
        (100, "one hundred"),
        (317, "three hundred seventeen"),
    ],
)
def test_numbers_in_words(number, expected):
    assert next(t for t in split.TRANSFORMS if t.name == "in_words").function(number) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_instances_are_many_apart_and_clear(kind):
    train, test = family.pools(kind)
    assert (len(set(train.shown)), len(set(test.shown))) == (family.TRAIN_POOL, family.TEST_POOL)
    assert not set(train.shown) & set(test.shown)
    assert not {"".join(sorted(text)) for text in train.shown} & {"".join(sorted(text)) for text in test.shown}
    assert len(train.values) == len(train.shown)
    if kind.name in ("words", "numbers"):  # no ties, so that "the longest" and "the largest" are one
        for text in train.shown + test.shown:
            keys = [len(p) for p in text.split(", ")] if kind.name == "words" else numbers_in(text)
            assert keys.count(max(keys)) == keys.count(min(keys)) == 1


def test_tasks_of_a_kind_share_their_instances(some):
    for task in some:
        train, test = family.pools(MEMBERS[task.name].kind)
        assert {example.input for example in task.train} <= set(train.shown)
        assert {example.input for example in task.test} <= set(test.shown)
        assert len({example.input for example in task.train}) == len(task.train) == 24
        assert all(example.output and len(example.output.split()) <= 10 for example in task.train)


def test_the_split_never_changes():
    names = {name: [member.name for member in members] for name, members in split.combinations().items()}
    assert {name: len(members) for name, members in names.items()} == {
        "train": 3169, "unseen combinations": 328, "unseen primitives": 239
    }  # fmt: skip
    # A hypernetwork trained on one side has figures on the others: they mean nothing once this changes.
    assert digest(names["unseen combinations"]) == "ea6d65b27dd06212"
    assert digest(names["unseen primitives"]) == "bd22495af2c424a9"
    assert digest(names["train"]) == "fc85d5976df351be"


def test_names_are_unique_and_safe_as_paths():
    names = [member.name for members in split.combinations().values() for member in members]
    assert len({name.lower() for name in names}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_.]+", name) for name in names)


def primitives_of(name):
    return {(m.kind.name if p is m.select else "", p) for m in split.combinations()[name] for p in m.primitives}


def test_unseen_combinations_consist_of_trained_primitives():
    assert primitives_of("unseen combinations") <= primitives_of("train")


def test_unseen_primitives_are_in_no_other_split():
    assert not any(primitive.held_out for name in SPLITS[:2] for _, primitive in primitives_of(name))
    assert all(member.is_held_out for member in split.combinations()["unseen primitives"])
    held_out = {(kind, p.name) for kind, p in primitives_of("unseen primitives") if p.held_out}
    selects = Counter(kind for kind, _ in held_out if kind)
    assert set(selects) == {kind.name for kind in KINDS}
    assert {name for kind, name in held_out if not kind} == {
        "last_three", "thrice", "plus_two", "previous_letter", "braces", "question", "semicolon", "backwards"
    }  # fmt: skip


def test_every_trained_primitive_is_in_several_tasks():
    used = Counter(
        (m.kind.name if p is m.select else "", p.name) for m in split.combinations()["train"] for p in m.primitives
    )
    assert min(used.values()) >= 5


def test_wordings_of_a_primitive_are_many_and_split():
    everything = {owner for members in split.combinations().values() for m in members for owner in m.parts.values()}
    everything |= {(kind.name, "input") for kind in KINDS}
    owners = {}
    for owner in everything:
        for form in ("phrases", "steps", "nouns", "indefinite", "definite"):
            train, unseen = (wordings(*owner, form, held_out) for held_out in (False, True))
            assert len(set(train + unseen)) == len(train + unseen), owner
            assert bool(train) == bool(unseen), owner
            for phrase in train + unseen:
                assert phrase == phrase.strip()
                assert owners.setdefault(spelled(phrase), owner) == owner or form.endswith("definite"), phrase
            assert not {spelled(phrase) for phrase in train} & {spelled(phrase) for phrase in unseen}, owner
        assert owner[1] == "input" or len(wordings(*owner, "phrases", False)) >= 10, owner


def test_training_wordings_are_no_near_copies_of_unseen_ones():
    """Of how many unseen wordings a training wording of the same thing has most of the words, endings apart."""
    near = []
    for file in (resources.files(family) / "wordings").iterdir():
        for sides in tomllib.loads(file.read_text()).values():
            for form, unseen in sides["unseen"].items():
                train = [stems(phrase) for phrase in sides["train"][form]]
                near += [max(len(u & t) / len(u | t) for t in train) >= 0.6 for u in map(stems, unseen)]
    assert len(near) > 400
    assert sum(near) / len(near) < 0.1
    assert not any(phrase.startswith("and ") for phrase in every_phrase())  # it follows an "and"


def every_phrase():
    for file in (resources.files(family) / "wordings").iterdir():
        for sides in tomllib.loads(file.read_text()).values():
            for forms in sides.values():
                yield from forms.get("phrases", ())


def stems(phrase):
    """The words that mean something, without their endings."""
    small = (
        "a an the of in on at to with and or for by as is it its them that which who be from this those these one has"
    )
    words = set(re.findall(r"\w+", phrase.lower())) - {*small.split(), "x"}
    return {re.sub(r"(?<=\w\w\w)(ing|ed|es|ly|s)$", "", word) for word in words}


def spelled(phrase):
    """A phrase without capitals and spaces: what two phrases must differ in."""
    return re.sub(r"\s", "", phrase.lower())


def test_the_files_of_wordings_hold_nothing_else():
    everything = {owner for members in split.combinations().values() for m in members for owner in m.parts.values()}
    everything |= {(kind.name, "input") for kind in KINDS}
    folder = resources.files(family) / "wordings"
    found = {
        (file.name.removesuffix(".toml"), name) for file in folder.iterdir() for name in tomllib.loads(file.read_text())
    }
    assert found == everything


def test_templates_are_split():
    train, unseen = family.phrasing.TRAIN, family.phrasing.UNSEEN
    for ours, theirs in zip(train, unseen, strict=True):
        assert not set(ours) & set(theirs)
        assert len(set(ours)) == len(ours)


def test_descriptions_are_many_distinct_and_well_formed(some):
    for task in some:
        assert len(set(task.descriptions)) == len(task.descriptions) == family.TRAIN_WORDINGS >= 64
        assert len(set(task.unseen_descriptions)) == len(task.unseen_descriptions) == family.UNSEEN_WORDINGS
        assert not set(task.descriptions) & set(task.unseen_descriptions)
        assert task.held_out_wording(1) == task.unseen_descriptions[1]
        for text in task.descriptions + task.unseen_descriptions:
            assert not text[0].islower(), text
            assert text.endswith((".", "?")), text
            assert not re.search(r"\{[a-zA-Z_]+\}|  |\.\.| ,|,,", text), text


def test_no_description_means_two_tasks(some):
    """Tasks that differ in one primitive only are the likeliest to be worded alike."""
    near = [
        m
        for m in MEMBERS.values()
        if m.kind.name in ("words", "sentences") and m.transform.name == "same" and not m.order
    ]
    texts = Counter(text for member in near for text in family.phrasing.descriptions(member, 64))
    texts.update(text for member in near for text in family.phrasing.descriptions(member, 16, held_out=True))
    others = [task for task in some if MEMBERS[task.name] not in near]
    texts.update(text for task in others for text in task.descriptions + task.unseen_descriptions)
    assert texts.most_common(1)[0][1] == 1


def shape(texts):
    """The number of ways in which the texts begin, and the share of their three-word sequences that are different."""
    worded = [re.findall(r"\w+", text.lower()) for text in texts]
    threes = [tuple(text[i : i + 3]) for text in worded for i in range(len(text) - 2)]
    return len({tuple(text[:3]) for text in worded}), len(set(threes)) / len(threes)


def test_descriptions_are_at_least_as_varied_as_those_of_the_old_family(some):
    def mean(descriptions):
        shapes = [shape(texts) for texts in descriptions]
        return [sum(column) / len(shapes) for column in zip(*shapes, strict=True)]

    ours = mean(task.descriptions for task in some)
    old = mean(words.build_task(member, 0, 0, "train").descriptions for member in words.split_combinations()[0][::10])
    assert ours[0] > 1.3 * old[0]
    assert ours[1] > 0.9 * old[1]


def test_descriptions_mention_every_primitive_that_is_not_a_default(some):
    for task in some:
        member = MEMBERS[task.name]
        for held_out, described in ((False, task.descriptions), (True, task.unseen_descriptions)):
            for primitive, owner in zip(member.primitives, member.parts.values(), strict=True):
                if primitive in family.phrasing.DEFAULTS:
                    continue
                parts = [
                    re.escape(text).replace(r"\{x\}", ".+").replace(r"\{it\}", ".+").replace(r"\{its\}", ".+")
                    for form in ("phrases", "steps", "nouns")
                    for text in wordings(*owner, form, held_out)
                ]
                pattern = re.compile("|".join(parts), re.IGNORECASE)
                assert all(pattern.search(text) for text in described), (task.name, primitive.name)


def test_a_task_never_changes(some):
    assert digest(text for task in some for text in task.descriptions) == "d66d14f2cf565d43"
    assert digest(text for task in some for text in task.unseen_descriptions) == "0907bcb887e32119"
    assert digest(f"{e.input} -> {e.output}" for task in some for e in task.train + task.test) == "1163a5915369d3bc"


def test_an_example_does_not_depend_on_how_many_are_asked_for(some):
    longer = family.build_task(MEMBERS[some[3].name], 50, 12, "train")
    assert longer.train[:24] == some[3].train
    assert longer.test[:8] == some[3].test


def test_more_examples_than_instances_are_refused():
    with pytest.raises(ValueError, match="510 examples of a task, but there are 509 instances"):
        family.build_task(next(iter(MEMBERS.values())), 1, family.TEST_POOL + 1, "train")


def test_tasks_are_those_of_the_split_with_their_use(monkeypatch):
    first = {name: members[:2] for name, members in split.combinations().items()}
    monkeypatch.setattr(family, "combinations", lambda: first)
    tasks = family.tasks(3, 2)
    assert list(tasks) == ["train", "unseen combinations", "unseen primitives"]
    assert [[task.use for task in members] for members in tasks.values()] == [["train"] * 2, ["test"] * 2, ["test"] * 2]
    assert all((len(task.train), len(task.test)) == (3, 2) for members in tasks.values() for task in members)
