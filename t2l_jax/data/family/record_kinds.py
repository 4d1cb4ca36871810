"""Kinds of instances made of fields: a date and time, a list of products with amounts, three persons."""

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

from t2l_jax.data.family.primitive import Kind, Primitive, select
from t2l_jax.data.family.sentence_kinds import CITIES, PEOPLE, WEEKDAYS

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
PRODUCTS = [
    "milk", "bread", "soap", "rice", "tea", "honey", "salt", "flour", "cheese", "butter",
    "sugar", "coffee", "paper", "candles", "eggs", "nuts", "beans", "oil", "pasta", "juice",
]  # fmt: skip

Product = tuple[str, int]  # what, how many
Person = tuple[str, int, str]  # name, age, city
People = tuple[Person, ...]


def draw_date(stream: Random) -> datetime:
    """A time from 2000 to 2029 whose hour and minute have two digits."""
    day = datetime(2000, 1, 1) + timedelta(days=stream.randrange(30 * 365))
    return day.replace(hour=stream.randint(10, 23), minute=stream.randint(10, 59))


def show_date(date: datetime) -> str:
    """For instance "Monday, 14 March 2022, 14:25"; never in the language of the machine."""
    return f"{WEEKDAYS[date.weekday()]}, {date.day} {_month(date)} {date.year}, {date.hour}:{date.minute}"


def draw_products(stream: Random) -> tuple[Product, ...]:
    """Four different products with different amounts from 2 to 30."""
    return tuple(zip(stream.sample(PRODUCTS, k=4), stream.sample(range(2, 31), k=4), strict=True))


def draw_people(stream: Random) -> tuple[Person, ...]:
    """Three persons of different names, ages from 18 to 79, and cities."""
    names, cities = stream.sample(PEOPLE, k=3), stream.sample(CITIES, k=3)
    return tuple(zip(names, stream.sample(range(18, 80), k=3), cities, strict=True))


def _month(date: datetime, later: int = 0) -> str:
    return MONTHS[(date.month - 1 + later) % 12]


def _most(products: tuple[Product, ...]) -> Product:
    return max(products, key=lambda product: product[1])


def _fewest(products: tuple[Product, ...]) -> Product:
    return min(products, key=lambda product: product[1])


DATES = Kind(
    "dates",
    draw_date,
    show_date,
    (
        select("weekday", "name", lambda date: WEEKDAYS[date.weekday()]),
        select("month", "name", _month),
        select("day", "number", lambda date: date.day),
        select("year", "year", lambda date: date.year),
        select("hour", "number", lambda date: date.hour),
        select("minute", "number", lambda date: date.minute, held_out=True),
        select("month_number", "number", lambda date: date.month, computed=True),
        select("next_weekday", "name", lambda date: WEEKDAYS[(date.weekday() + 1) % 7], computed=True),
        select("previous_weekday", "name", lambda date: WEEKDAYS[(date.weekday() - 1) % 7], computed=True),
        select("next_month", "name", lambda date: _month(date, 1), computed=True, held_out=True),
    ),
)

PRODUCT_LISTS = Kind(
    "products",
    draw_products,
    lambda products: ", ".join(f"{name} {amount}" for name, amount in products),
    (
        select("first", "word", lambda products: products[0][0]),
        select("second", "word", lambda products: products[1][0]),
        select("last", "word", lambda products: products[-1][0]),
        select("most", "word", lambda products: _most(products)[0]),
        select("fewest", "word", lambda products: _fewest(products)[0], held_out=True),
        select("first_amount", "number", lambda products: products[0][1]),
        select("second_amount", "number", lambda products: products[1][1]),
        select("last_amount", "number", lambda products: products[-1][1]),
        select("largest_amount", "number", lambda products: _most(products)[1]),
        select("smallest_amount", "number", lambda products: _fewest(products)[1], held_out=True),
        select("first_two_total", "number", lambda products: products[0][1] + products[1][1], computed=True),
        select("all", "word", lambda products: tuple(name for name, _ in products), plural=True),
        select("amounts", "number", lambda products: tuple(amount for _, amount in products), plural=True),
        select("first_two", "word", lambda products: (products[0][0], products[1][0]), plural=True),
    ),
)

_ROWS = (
    ("first", lambda people: people[0], False),
    ("second", lambda people: people[1], False),
    ("last", lambda people: people[-1], False),
    ("oldest", lambda people: max(people, key=lambda person: person[1]), False),
    ("youngest", lambda people: min(people, key=lambda person: person[1]), True),
)
_FIELDS = (("name", 0, "name"), ("age", 1, "number"), ("city", 2, "name"))


def _cells() -> tuple[Primitive, ...]:
    """The selects of one field of one person: every row with every field, `held_out` where the row is."""
    return tuple(
        select(f"{row}.{field}", gives, _cell(pick, column), held_out=held_out)
        for row, pick, held_out in _ROWS
        for field, column, gives in _FIELDS
    )


def _cell(pick: Callable[[People], Person], column: int) -> Callable[[People], str | int]:
    return lambda people: pick(people)[column]


def _column(column: int) -> Callable[[People], tuple[str | int, ...]]:
    return lambda people: tuple(person[column] for person in people)


PEOPLE_LISTS = Kind(
    "records",
    draw_people,
    lambda people: "; ".join(f"{name}, {age}, {city}" for name, age, city in people),
    (
        *_cells(),
        select("names", "name", _column(0), plural=True),
        select("ages", "number", _column(1), plural=True),
        select("cities", "name", _column(2), plural=True, held_out=True),
    ),
)
