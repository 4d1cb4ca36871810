"""The one way in for values from outside: a declared schema of types and ranges, checked before anything is computed.

A file's layout is a subclass of `Schema`, or a dataclass of ours; `checked` turns what was read into it. Settings check
their own fields: `check_fields`. Nothing is converted: a text is never a number, 1.0 no integer, "false" no boolean,
and every number is finite.
"""

import reprlib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from t2l_jax.errors import UserError

_RULES = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, extra="ignore")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxlevel = 3
_WORDS = {  # of pydantic's messages
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
Kind = TypeVar("Kind")
Item = TypeVar("Item")

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
Size = Annotated[int, Field(ge=0, le=2**63 - 1)]  # bytes
Positive = Annotated[float, Field(gt=0, le=1e30)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Width = Annotated[int, Field(ge=1, le=2**20)]  # of an array
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[tuple[Item, ...], Strict(False)]  # a list of JSON or YAML, or a tuple


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a non-empty text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Texts = Annotated[Several[Text], Field(min_length=1)]


class Schema(BaseModel):
    """A mapping of fields. Fields that it does not declare are ignored, unless a subclass says extra="forbid"."""

    model_config = _RULES


def checked(kind: type[Kind], value: object, where: str) -> Kind:
    """`value` as `kind`: a Schema, or a dataclass (from a mapping or an instance).

    A dataclass's fields are checked, its nested ones too, and it has no others. Raises UserError that names `where` (a
    file) and the field.
    """
    if is_dataclass(kind):
        return _dataclass(kind, value, where, "")
    return _plain(kind, value, where, "")


def check_fields(config: Any, name: str) -> None:
    """Raise UserError for the first field of a dataclass that has another type or range than it declares.

    For the `__post_init__` of settings, so that there are none with wrong values; `name` is what a user calls them.
    """
    kind: Any = type(config)
    hints = _hints(kind)
    for field in fields(config):
        _part(hints[field.name], getattr(config, field.name), name, field.name)


def shown(value: object) -> str:
    """A value for an error message: its repr, cut to one short line."""
    try:
        return " ".join(_REPR.repr(value).split())[:120]
    except ValueError:  # an integer of more digits than Python converts
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def _dataclass(kind: Any, value: object, where: str, path: str) -> Any:
    if isinstance(value, kind):
        given: Mapping[Any, Any] = {field.name: getattr(value, field.name) for field in fields(kind)}
    elif isinstance(value, Mapping):
        given = value
    else:
        raise UserError(f"{where}: {_field(path)} must be an object of fields, got {shown(value)}")
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    if unknown := [name for name in given if name not in known]:
        raise UserError(f"{where}: {_field(path, unknown[0])} is not known; only {', '.join(known)} are")
    for name, field in known.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}: {_field(path, name)} is missing")
    parts = {name: _part(hints[name], item, where, f"{path}.{name}" if path else name) for name, item in given.items()}
    try:
        return kind(**parts)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _part(hint: Any, value: object, where: str, path: str) -> Any:
    """A field of a dataclass; of a union the member that the value is an instance of."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    members = get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (bare,)
    nested = [member for member in members if is_dataclass(member)]
    if nested and not (value is None and type(None) in members):
        own = [member for member in nested if isinstance(member, type) and isinstance(value, member)]
        return _dataclass((own or nested)[0], value, where, path)
    return _plain(hint, value, where, path)


def _plain(kind: Any, value: object, where: str, path: str) -> Any:
    try:
        return _validator(kind)(value)
    except ValidationError as error:
        # Of a union there is an error for each member: the one that came furthest says most.
        found = [(_place(value, one), one) for one in error.errors(include_url=False)]
        names, first = max(found, key=lambda pair: len(pair[0]))
        problem = first["msg"].removeprefix("Value error, ")
        for theirs, ours in _WORDS.items():
            problem = problem.replace(theirs, ours)
        if first["type"] == "model_type":
            problem = "must be an object of fields"
        if first["type"] == "missing":
            raise UserError(f"{where}: {_field(path, *names)} is missing") from error
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: {_field(path, *names)} is not known: remove it") from error
        raise UserError(f"{where}: {_field(path, *names)}: {problem}, got {shown(first['input'])}") from error
    except RecursionError as error:
        raise UserError(f"{where}: {_field(path)} is nested too deeply") from error


def _place(value: Any, error: ErrorDetails) -> list[str | int]:
    """The keys and indices that lead to what is wrong. Pydantic also names the members of unions, which are no part."""
    names: list[str | int] = []
    for part in error["loc"]:
        items = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(items, Mapping) and part in items:
            value = items[part]
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        names.append(part)
    return names


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _validator(kind: Any) -> Callable[[object], Any]:
    model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return (TypeAdapter(kind) if model else TypeAdapter(kind, config=_RULES)).validate_python


def _field(path: str, *names: str | int) -> str:
    parts = ([path] if path else []) + [shown(name).strip("'\"") for name in names]
    return f"field {'.'.join(parts)}" if parts else "its content"
