"""What checks the jaxtyping annotations of t2l_jax while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

# Its return value has an axis that no argument names, which jaxtyping cannot work out.
UNCHECKED = {"rope_frequencies"}


def check_functions(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype for functions, not for a dataclass's __init__.

    The dataclasses that hold arrays are pytrees: JAX rebuilds them with shapes, shardings or axis numbers as leaves.
    """
    return function if function.__name__ in {"__init__", *UNCHECKED} else beartype(function)
