"""What checks the jaxtyping annotations of t2l_jax while the tests run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception


def check_functions(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype for functions, not for a dataclass's __init__.

    The dataclasses that hold arrays are pytrees: JAX rebuilds them with shapes, shardings or axis numbers as leaves.
    """
    if function.__name__ == "__init__":
        return function
    try:
        return beartype(function)
    except BeartypeDecorHintPep3119Exception:  # it takes a Protocol that only mypy checks
        return function
