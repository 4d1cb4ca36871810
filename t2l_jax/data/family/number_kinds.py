"""Kinds of instances made of numbers: a list of numbers, and three variables with their values."""

from random import Random

from t2l_jax.data.family.primitive import Kind, select


def draw_numbers(stream: Random) -> tuple[int, ...]:
    """Five different numbers from 2 to 99."""
    return tuple(stream.sample(range(2, 100), k=5))


def draw_variables(stream: Random) -> tuple[int, ...]:
    """Three different numbers from 2 to 20: the values of a, b and c."""
    return tuple(stream.sample(range(2, 21), k=3))


NUMBERS = Kind(
    "numbers",
    draw_numbers,
    lambda numbers: ", ".join(map(str, numbers)),
    (
        select("first", "number", lambda numbers: numbers[0]),
        select("second", "number", lambda numbers: numbers[1]),
        select("third", "number", lambda numbers: numbers[2]),
        select("fourth", "number", lambda numbers: numbers[3], held_out=True),
        select("last", "number", lambda numbers: numbers[-1]),
        select("largest", "number", max),
        select("smallest", "number", min, held_out=True),
        select("median", "number", lambda numbers: sorted(numbers)[2]),
        select("runner_up", "number", lambda numbers: sorted(numbers)[-2]),
        select("even_count", "number", lambda numbers: sum(number % 2 == 0 for number in numbers), computed=True),
        select("first_two", "number", lambda numbers: numbers[:2], plural=True),
        select("ends", "number", lambda numbers: (numbers[0], numbers[-1]), plural=True),
        select("last_two", "number", lambda numbers: numbers[-2:], plural=True, held_out=True),
        select(
            "two_largest",
            "number",
            lambda numbers: tuple(number for number in numbers if number in sorted(numbers)[-2:]),
            plural=True,
        ),
        select("all", "number", tuple, plural=True),
    ),
)

VARIABLES = Kind(
    "variables",
    draw_variables,
    lambda values: ", ".join(f"{name} = {value}" for name, value in zip("abc", values, strict=True)),
    (
        select("a", "number", lambda values: values[0]),
        select("b", "number", lambda values: values[1]),
        select("c", "number", lambda values: values[2]),
        select("a_plus_b", "number", lambda values: values[0] + values[1], computed=True),
        select("b_plus_c", "number", lambda values: values[1] + values[2], computed=True),
        select("a_plus_c", "number", lambda values: values[0] + values[2], computed=True, held_out=True),
        select("sum", "number", sum, computed=True),
        select("gap", "number", lambda values: abs(values[0] - values[1]), computed=True),
        select("product", "number", lambda values: values[0] * values[1], computed=True),
        select("largest", "number", max),
        select("smallest", "number", min, held_out=True),
        select("largest_name", "letter", lambda values: "ABC"[values.index(max(values))]),
        select("all", "number", tuple, plural=True),
    ),
)
