"""Kinds of instances made of numbers: a list of numbers, and three variables with their values."""

from random import Random

from t2l_jax.data.family.primitive import Kind, select, texts


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
    texts(
        "a list of numbers | five numbers | some numbers, separated by commas | a short list of numbers || a handful "
        "of numbers"
    ),
    texts(
        "the list of numbers | the numbers | the line of numbers | the five numbers || the given numbers | these "
        "numbers"
    ),
    (
        select(
            "first",
            "number",
            lambda numbers: numbers[0],
            "the first number | the number at the start of the list | the opening number | the number that comes "
            "first | number one in the list | the number listed first || the 1st number | the leading number",
        ),
        select(
            "second",
            "number",
            lambda numbers: numbers[1],
            "the second number | the number in second place | the number that comes second | the number right after "
            "the first one | the number listed second || the 2nd number | the number directly following the first",
        ),
        select(
            "third",
            "number",
            lambda numbers: numbers[2],
            "the third number | the number in third place | the number that comes third | the number listed third || "
            "the 3rd number | the number in the centre of the list",
        ),
        select(
            "fourth",
            "number",
            lambda numbers: numbers[3],
            "the fourth number | the number in fourth place | the number that comes fourth | the number before the "
            "last one || the 4th number | the penultimate number",
            held_out=True,
        ),
        select(
            "last",
            "number",
            lambda numbers: numbers[-1],
            "the last number | the number at the end of the list | the final number | the number that comes last | "
            "the closing number | the number listed last || the 5th number | the concluding number",
        ),
        select(
            "largest",
            "number",
            max,
            "the largest number | the biggest number | the highest number | the maximum | the greatest of the "
            "numbers | the number that exceeds all the others || the number of the greatest value | the top number",
        ),
        select(
            "smallest",
            "number",
            min,
            "the smallest number | the lowest number | the minimum | the least of the numbers | the number below all "
            "the others || the number of the lowest value | the bottom number",
            held_out=True,
        ),
        select(
            "median",
            "number",
            lambda numbers: sorted(numbers)[2],
            "the median | the number that is in the middle after sorting | the third largest number | the middle "
            "value of the sorted numbers || the number with two smaller and two larger ones | the median value",
        ),
        select(
            "runner_up",
            "number",
            lambda numbers: sorted(numbers)[-2],
            "the second largest number | the second highest number | the number that only one other exceeds | the "
            "second biggest of the numbers || the largest number but one | the runner-up in size",
        ),
        select(
            "even_count",
            "number",
            lambda numbers: sum(number % 2 == 0 for number in numbers),
            "the count of even numbers | the figure for how many numbers are even | the number of even entries || "
            "the tally of even values",
            computed=True,
        ),
        select(
            "first_two",
            "number",
            lambda numbers: numbers[:2],
            "the first two numbers | the two numbers at the start of the list | the two leading numbers || the "
            "opening pair of numbers | the initial two numbers",
            plural=True,
        ),
        select(
            "ends",
            "number",
            lambda numbers: (numbers[0], numbers[-1]),
            "the first and the last number | the two outermost numbers | the numbers at both ends of the list || the "
            "opening and the closing number",
            plural=True,
        ),
        select(
            "last_two",
            "number",
            lambda numbers: numbers[-2:],
            "the last two numbers | the two numbers at the end of the list | the two final numbers || the closing "
            "pair of numbers",
            plural=True,
            held_out=True,
        ),
        select(
            "two_largest",
            "number",
            lambda numbers: tuple(number for number in numbers if number in sorted(numbers)[-2:]),
            "the two largest numbers | the two highest numbers | the two biggest of the numbers || the top two "
            "values | the pair of numbers with the greatest values",
            plural=True,
        ),
        select(
            "all",
            "number",
            tuple,
            "all the numbers | all numbers of the list | all five numbers | all of the numbers || the complete set "
            "of numbers",
            plural=True,
        ),
    ),
)

VARIABLES = Kind(
    "variables",
    draw_variables,
    lambda values: ", ".join(f"{name} = {value}" for name, value in zip("abc", values, strict=True)),
    texts(
        "three variables with their values | the values of a, b and c | three assignments || a set of three variables"
    ),
    texts("the assignments | the three variables | the variables a, b and c || the given values | these assignments"),
    (
        select(
            "a",
            "number",
            lambda values: values[0],
            "the value of a | the number assigned to a | the number that a stands for | the number that a equals || "
            "the value that a has",
        ),
        select(
            "b",
            "number",
            lambda values: values[1],
            "the value of b | the number assigned to b | the number that b stands for | the number that b equals || "
            "the value that b has",
        ),
        select(
            "c",
            "number",
            lambda values: values[2],
            "the value of c | the number assigned to c | the number that c stands for | the number that c equals || "
            "the value that c has",
        ),
        select(
            "a_plus_b",
            "number",
            lambda values: values[0] + values[1],
            "the sum of a and b | the result of a plus b | the result of a + b | the total of a and b || the number "
            "that a and b add up to",
            computed=True,
        ),
        select(
            "b_plus_c",
            "number",
            lambda values: values[1] + values[2],
            "the sum of b and c | the result of b plus c | the result of b + c | the total of b and c || the number "
            "that b and c add up to",
            computed=True,
        ),
        select(
            "a_plus_c",
            "number",
            lambda values: values[0] + values[2],
            "the sum of a and c | the result of a plus c | the result of a + c | the total of a and c || the number "
            "that a and c add up to",
            computed=True,
            held_out=True,
        ),
        select(
            "sum",
            "number",
            sum,
            "the sum of all three values | the result of a plus b plus c | the result of a + b + c | the total of a, "
            "b and c || the number that the three values add up to",
            computed=True,
        ),
        select(
            "gap",
            "number",
            lambda values: abs(values[0] - values[1]),
            "the difference between a and b | the number of steps between a and b | the distance between a and b | the "
            "absolute difference of a and b || the gap between a and b",
            computed=True,
        ),
        select(
            "product",
            "number",
            lambda values: values[0] * values[1],
            "the product of a and b | the result of a times b | the result of a * b | the result of multiplying a by "
            "b || the number that a and b give when multiplied",
            computed=True,
        ),
        select(
            "largest",
            "number",
            max,
            "the largest value | the highest of the three values | the greatest value of the three variables | the "
            "largest of a, b and c || the maximum of the variables | the top value",
        ),
        select(
            "smallest",
            "number",
            min,
            "the smallest value | the lowest of the three values | the least value of the three variables | the "
            "smallest of a, b and c || the minimum of the variables | the bottom value",
            held_out=True,
        ),
        select(
            "largest_name",
            "letter",
            lambda values: "ABC"[values.index(max(values))],
            "the capital letter of the variable with the largest value | the uppercase name of the largest variable "
            "| the name of the variable with the highest value, as a capital || the capital letter that names the "
            "greatest variable",
        ),
        select(
            "all",
            "number",
            tuple,
            "all three values | the values of all variables | the three numbers assigned || the complete set of values",
            plural=True,
        ),
    ),
)
