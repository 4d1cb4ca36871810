"""What checks the annotations of t2l_jax while the tests run: `install()` before it is imported."""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any, get_args
from unittest.mock import patch

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception
from jaxtyping import _import_hook

_with_axes = jaxtyping.jaxtyped


def install() -> None:
    """Check every function of t2l_jax: with jaxtyping where a shape is annotated, with beartype alone elsewhere.

    Jaxtyping binds and checks the arguments of a call in Python, twice, to compare axes. Where there are none, that
    takes ten times as long as the tests of tasks and texts themselves.
    """
    jaxtyping.jaxtyped = lambda *, typechecker: lambda thing: _checked(thing, typechecker)  # it is what the hook calls
    jaxtyping.install_import_hook("t2l_jax", "typecheck_functions.check_function")
    loader = _import_hook._JaxtypingLoader
    loader.exec_module, loader.get_code = SourceFileLoader.exec_module, _get_code


def _get_code(loader: Any, name: str) -> CodeType | None:
    """A module's checked bytecode, which has a file name of its own.

    Jaxtyping keeps that name up while the module runs, so that whatever it imports first is looked for by that name,
    too: two thousand modules of libraries, compiled anew in every process.
    """
    named = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", named):
        return SourceFileLoader.get_code(loader, name)


def check_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype for a function."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep3119Exception:  # it takes a Protocol that only mypy checks
        return function


def _checked(thing: Any, typechecker: Callable[..., Any]) -> Any:
    """A checked function; a class as it is.

    The dataclasses that hold arrays are pytrees: JAX rebuilds them with shapes, shardings or axis numbers as leaves.
    """
    if inspect.isclass(thing):
        return thing
    if any(map(_has_shape, thing.__annotations__.values())):
        return _with_axes(thing, typechecker=typechecker)
    return typechecker(thing)


def _has_shape(annotation: Any) -> bool:
    """True where an array with axes is part of an annotation, or may be: a string is not looked into."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else get_args(annotation)  # of a Callable: a list, a result
    return any(map(_has_shape, parts))
