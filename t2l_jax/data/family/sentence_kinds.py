"""Sentences about who did what, where and when, and the words that they are made of."""

from random import Random

from t2l_jax.data.family.primitive import Kind, select

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
    (
        select("who", "name", lambda parts: parts["who"]),
        select("verb", "word", lambda parts: parts["verb"]),
        select("count", "word", lambda parts: parts["count"]),
        select("colour", "word", lambda parts: parts["colour"]),
        select("thing", "word", lambda parts: parts["thing"]),
        select("day", "name", lambda parts: parts["day"]),
        select("city", "name", lambda parts: parts["city"], held_out=True),
    ),
)
