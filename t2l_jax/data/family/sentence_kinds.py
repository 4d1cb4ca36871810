"""Sentences about who did what, where and when, and the words that they are made of."""

from random import Random

from t2l_jax.data.family.primitive import Kind, select, texts

PEOPLE = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Kate",
    "Leo",
    "Maria",
    "Noah",
    "Olga",
    "Peter",
    "Rosa",
    "Sam",
    "Tina",
    "Victor",
]
CITIES = [
    "Paris",
    "Rome",
    "Oslo",
    "Berlin",
    "Madrid",
    "London",
    "Tokyo",
    "Cairo",
    "Lima",
    "Boston",
    "Dublin",
    "Vienna",
    "Athens",
    "Prague",
    "Delhi",
    "Milan",
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COUNTS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "brown", "pink"]
THINGS = [
    "lamps",
    "books",
    "chairs",
    "shirts",
    "boxes",
    "cups",
    "bags",
    "hats",
    "pens",
    "clocks",
    "tables",
    "plates",
    "bottles",
    "coats",
    "toys",
]
VERBS = ["sold", "bought", "found", "painted", "lost", "packed", "repaired", "wanted"]


def draw_sentence(stream: Random) -> dict[str, str]:
    """The parts of a sentence, and its shape."""
    lists = {
        "who": PEOPLE, "verb": VERBS, "count": COUNTS, "colour": COLOURS, "thing": THINGS, "city": CITIES,
        "day": WEEKDAYS,
    }  # fmt: skip
    shape = stream.choice(
        (
            "{who} {verb} {count} {colour} {thing} in {city} on {day}.",
            "On {day}, {who} {verb} {count} {colour} {thing} in {city}.",
            "In {city}, {who} {verb} {count} {colour} {thing} on {day}.",
        )
    )
    return {"shape": shape, **{name: stream.choice(values) for name, values in lists.items()}}


SENTENCES = Kind(
    "sentences",
    draw_sentence,
    lambda parts: parts["shape"].format(**parts),
    texts("a sentence | a short sentence | one sentence about somebody | a statement || a single English sentence"),
    texts("the sentence | the statement | the text || the given sentence | this statement"),
    (
        select(
            "who",
            "name",
            lambda parts: parts["who"],
            "the name of the person | the person in the sentence | the name of who did it | the subject of the "
            "sentence | the person the sentence is about || the name of the individual concerned | the one who acts "
            "in the sentence",
        ),
        select(
            "verb",
            "word",
            lambda parts: parts["verb"],
            "the verb | the verb of the sentence | the word for what was done | the action word | the word that "
            "names the action || the predicate verb | the past-tense word",
        ),
        select(
            "count",
            "word",
            lambda parts: parts["count"],
            "the number word | the word that says how many | the number mentioned in the sentence | the quantity "
            "mentioned in the sentence || the numeral in the statement | the word that gives the count",
        ),
        select(
            "colour",
            "word",
            lambda parts: parts["colour"],
            "the colour of the things | the colour mentioned in the sentence | the color that the sentence mentions "
            "| the colour adjective || the adjective of the statement | the shade that the objects have",
        ),
        select(
            "thing",
            "word",
            lambda parts: parts["thing"],
            "the word for the objects | the word for the things | the plural noun | the name of the things that the "
            "sentence mentions || the noun after the colour | the word for the goods",
        ),
        select(
            "day",
            "name",
            lambda parts: parts["day"],
            "the day mentioned in the sentence | the day on which it happened | the name of the day in the sentence "
            "| the word that says when it happened || the weekday on which this took place | the stated day",
        ),
        select(
            "city",
            "name",
            lambda parts: parts["city"],
            "the city | the city mentioned in the sentence | the place where it happened | the name of the place in "
            "the sentence || the city in which this took place | the stated location",
            held_out=True,
        ),
    ),
)
