"""Kinds of instances made of fields: a date and time, a list of products with amounts, three persons."""

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

from t2l_jax.data.family.primitive import Kind, Primitive, select, texts
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
    texts("a date with a time | a date and a time of day | a point in time | a full date || a timestamp"),
    texts("the date | the date and time | the line with the date || the given date | this timestamp"),
    (
        select(
            "weekday",
            "name",
            lambda date: WEEKDAYS[date.weekday()],
            "the day of the week | the weekday | the name of the day | the name of the weekday | the weekday of the "
            "date || the day's name | the named day of the week",
        ),
        select(
            "month",
            "name",
            _month,
            "the month | the name of the month | the month of the date | the month that is mentioned | the calendar "
            "month || the month's name | the named month",
        ),
        select(
            "day",
            "number",
            lambda date: date.day,
            "the day of the month | the day as a number | the number of the day | the number before the month || the "
            "day's number | the figure that stands before the month",
        ),
        select(
            "year",
            "year",
            lambda date: date.year,
            "the year | the year of the date | the four-digit year | the year that is mentioned | the calendar year "
            "|| the year's number | the figure that stands after the month",
        ),
        select(
            "hour",
            "number",
            lambda date: date.hour,
            "the hour | the hour of the time | the number before the colon | the hour on the 24-hour clock || the "
            "hour's number | the figure that stands before the colon",
        ),
        select(
            "minute",
            "number",
            lambda date: date.minute,
            "the minutes of the time | the minute | the number after the colon | the minute of the hour || the "
            "figure that stands after the colon",
            held_out=True,
        ),
        select(
            "month_number",
            "number",
            lambda date: date.month,
            "the number of the month | the month as a number from 1 to 12 | the month's place in the year, as a "
            "number || the numerical value of the month | the month's number (January is 1)",
            computed=True,
        ),
        select(
            "next_weekday",
            "name",
            lambda date: WEEKDAYS[(date.weekday() + 1) % 7],
            "the weekday after the one given | the day of the week that follows | the weekday of the next day | the "
            "name of the following day || the next day's name | the weekday one day later",
            computed=True,
        ),
        select(
            "previous_weekday",
            "name",
            lambda date: WEEKDAYS[(date.weekday() - 1) % 7],
            "the weekday before the one given | the day of the week that came before | the weekday of the previous "
            "day | the name of the preceding day || the weekday one day earlier",
            computed=True,
        ),
        select(
            "next_month",
            "name",
            lambda date: _month(date, 1),
            "the month after the one given | the month that follows | the name of the next month | the following "
            "month || the month one later in the calendar",
            computed=True,
            held_out=True,
        ),
    ),
)

PRODUCT_LISTS = Kind(
    "products",
    draw_products,
    lambda products: ", ".join(f"{name} {amount}" for name, amount in products),
    texts(
        "a list of products with amounts | four products, each with its amount | a shopping list with amounts | some "
        "products and how many of each || a stock list"
    ),
    texts(
        "the list of products | the shopping list | the products and amounts | the list || the given products | this "
        "stock list"
    ),
    (
        select(
            "first",
            "word",
            lambda products: products[0][0],
            "the first product | the product listed first | the product at the start of the list | the product that "
            "comes first || the 1st product | the leading product",
        ),
        select(
            "second",
            "word",
            lambda products: products[1][0],
            "the second product | the product listed second | the product in second place | the product that comes "
            "second || the 2nd product | the product directly following the first",
        ),
        select(
            "last",
            "word",
            lambda products: products[-1][0],
            "the last product | the product listed last | the product at the end of the list | the final product || "
            "the 4th product | the concluding product",
        ),
        select(
            "most",
            "word",
            lambda products: _most(products)[0],
            "the product with the largest amount | the product of which there is most | the product with the highest "
            "number | the most plentiful product || the product in greatest supply | the product whose figure is "
            "biggest",
        ),
        select(
            "fewest",
            "word",
            lambda products: _fewest(products)[0],
            "the product with the smallest amount | the product of which there is least | the product with the "
            "lowest number | the scarcest product || the product in shortest supply",
            held_out=True,
        ),
        select(
            "first_amount",
            "number",
            lambda products: products[0][1],
            "the amount of the first product | the amount listed first | the number that goes with the first product "
            "| the first amount || the quantity of the 1st product | the leading amount",
        ),
        select(
            "second_amount",
            "number",
            lambda products: products[1][1],
            "the amount of the second product | the amount listed second | the number that goes with the second "
            "product | the second amount || the quantity of the 2nd product",
        ),
        select(
            "last_amount",
            "number",
            lambda products: products[-1][1],
            "the amount of the last product | the amount listed last | the number that goes with the last product | "
            "the final amount || the quantity of the 4th product | the concluding amount",
        ),
        select(
            "largest_amount",
            "number",
            lambda products: _most(products)[1],
            "the largest amount | the highest of the amounts | the biggest amount in the list | the greatest amount "
            "|| the maximum quantity | the top amount",
        ),
        select(
            "smallest_amount",
            "number",
            lambda products: _fewest(products)[1],
            "the smallest amount | the lowest of the amounts | the least amount in the list || the minimum quantity",
            held_out=True,
        ),
        select(
            "first_two_total",
            "number",
            lambda products: products[0][1] + products[1][1],
            "the total amount of the first two products | the sum of the first two amounts | the first two amounts "
            "added together || the number that the first two quantities add up to",
            computed=True,
        ),
        select(
            "all",
            "word",
            lambda products: tuple(name for name, _ in products),
            "the names of all products | all the products, without their amounts | all of the products, without "
            "amounts || the complete set of product names",
            plural=True,
        ),
        select(
            "amounts",
            "number",
            lambda products: tuple(amount for _, amount in products),
            "all the amounts | the amounts without the products | all of the amounts | the four amounts || the "
            "complete set of quantities",
            plural=True,
        ),
        select(
            "first_two",
            "word",
            lambda products: (products[0][0], products[1][0]),
            "the first two products, without amounts | the names of the first two products | the two products listed "
            "first, by name only || the opening pair of product names",
            plural=True,
        ),
    ),
)

_ROWS = (
    ("first", lambda people: people[0], False,
     "the first person | the person listed first | person number one || the 1st person | the leading person"),
    ("second", lambda people: people[1], False,
     "the second person | the person listed second | the person in the middle || the 2nd person | person number two"),
    ("last", lambda people: people[-1], False,
     "the last person | the person listed last | the final person || the 3rd person | the concluding person"),
    ("oldest", lambda people: max(people, key=lambda person: person[1]), False,
     "the oldest person | the person with the highest age | the eldest || the person older than the others | the "
     "most aged person"),
    ("youngest", lambda people: min(people, key=lambda person: person[1]), True,
     "the youngest person | the person with the lowest age | the person who is youngest || the person younger than "
     "the others | the least aged person"),
)  # fmt: skip
_FIELDS = (
    ("name", 0, "name", "the name of {row} | the first name of {row} | the name that belongs to {row} || the given "
                        "name of {row} | the name stated for {row}"),
    ("age", 1, "number", "the age of {row} | the age given for {row} | the figure for the age of {row} || the "
     "age in years of {row} | the age stated for {row}"),
    ("city", 2, "name", "the city of {row} | the home town of {row} | the place that goes with {row} | the city "
                        "given for {row} || the town of {row} | the city stated for {row}"),
)  # fmt: skip


def _cells() -> tuple[Primitive, ...]:
    """The selects of one field of one person: every row with every field, `held_out` where the row is."""
    cells = []
    for row, pick, held_out, row_texts in _ROWS:
        for field, column, gives, field_texts in _FIELDS:
            rows, fields = texts(row_texts), texts(field_texts)
            both = (
                [f.replace("{row}", r) for r in side_rows for f in side_fields]
                for side_rows, side_fields in zip(rows, fields, strict=True)
            )
            phrases = " || ".join(" | ".join(side) for side in both)
            cells.append(select(f"{row}.{field}", gives, _cell(pick, column), phrases, held_out=held_out))
    return tuple(cells)


def _cell(pick: Callable[[People], Person], column: int) -> Callable[[People], str | int]:
    return lambda people: pick(people)[column]


def _column(column: int) -> Callable[[People], tuple[str | int, ...]]:
    return lambda people: tuple(person[column] for person in people)


PEOPLE_LISTS = Kind(
    "records",
    draw_people,
    lambda people: "; ".join(f"{name}, {age}, {city}" for name, age, city in people),
    texts("three persons with name, age and city | a small table of persons | records of three people | a few "
          "people, each with name, age and city || a short register of persons"),
    texts("the table | the three records | the records of the people || the given records | this register"),
    (
        *_cells(),
        select("names", "name", _column(0),
               "all the names | the names of all persons | the three names | the full set of names || the complete "
               "set of names", plural=True),
        select("ages", "number", _column(1),
               "all the ages | the ages of all persons | the three ages | the full set of ages || the complete set "
               "of ages",
               plural=True),
        select("cities", "name", _column(2),
               "all the cities | the cities of all persons | the three cities | the full set of cities || the "
               "complete set of cities", plural=True, held_out=True),
    ),
)  # fmt: skip
