"""The schema: nothing is converted, and errors name file and field."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from t2l_jax.errors import UserError
from t2l_jax.schema import Count, Positive, Schema, Several, checked, shown


class Inner(Schema):
    size: Count
    scale: Positive = 1.0


class Outer(Schema):
    inner: Inner
    names: Several[str] = ()
    whole: bool = False
    window: Count | None = None


def test_right_values_come_through_and_unknown_fields_are_ignored():
    value = checked(Outer, {"inner": {"size": 3, "scale": 2}, "names": ["a"], "other": 1}, "f")
    assert value == Outer(inner=Inner(size=3, scale=2.0), names=("a",))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "f: field inner is missing"),
        ({"inner": {}}, "f: field inner.size is missing"),
        ({"inner": 7}, "f: field inner: "),
        ({"inner": {"size": 1.0}}, "f: field inner.size: must be a valid integer, got 1.0"),
        ({"inner": {"size": True}}, "field inner.size"),
        ({"inner": {"size": "3"}}, "field inner.size"),
        ({"inner": {"size": 2**31}}, "field inner.size"),
        ({"inner": {"size": 10**5000}}, "field inner.size.*, got a number of 16610 bits"),
        ({"inner": {"size": 1, "scale": float("nan")}}, "field inner.scale: .*finite"),
        ({"inner": {"size": 1, "scale": 10**400}}, "field inner.scale"),
        ({"inner": {"size": 1}, "names": "ab"}, "field names"),
        ({"inner": {"size": 1}, "names": ["a", 1]}, "field names.1"),
        ({"inner": {"size": 1}, "whole": "false"}, "field whole: must be a valid boolean, got 'false'"),
        ({"inner": {"size": 1}, "window": [1]}, "field window"),
        ([], "f: its content"),
        (None, "f: its content"),
    ],
)
def test_errors_name_file_field_and_value(value: Any, message: str):
    with pytest.raises(UserError, match=message):
        checked(Outer, value, "f")


@dataclass(frozen=True)
class Leaf:
    rank: int = 8
    modules: tuple[str, ...] = ("q",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError("rank must be at least 1")


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf = field(default_factory=Leaf)
    rate: float | None = None
    other: Leaf | None = None


def test_a_dataclass_from_a_mapping_or_an_instance():
    assert checked(Tree, {"name": "a", "leaf": {"rank": 2}, "rate": 1}, "f") == Tree("a", Leaf(2), 1.0)
    assert checked(Tree, Tree("a", other=Leaf(3)), "f") == Tree("a", other=Leaf(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "f: field name is missing"),
        ({"name": "a", "leaf": {"rank": "2"}}, "f: field leaf.rank: must be a valid integer"),
        ({"name": "a", "leaf": {"rank": 0}}, "f: rank must be at least 1"),
        ({"name": "a", "leaf": {"rnak": 1}}, "f: field leaf.rnak is not known; only rank, modules are"),
        ({"name": "a", "leaf": (8, 16)}, "f: field leaf must be an object of fields"),
        (Tree("a", rate=float("inf")), "f: field rate: .*finite"),
        (Tree("a", leaf=Leaf(2.0)), "f: field leaf.rank"),  # type: ignore[arg-type]
        (Tree("a", other="adamw"), "f: field other must be an object of fields, got 'adamw'"),  # type: ignore[arg-type]
        (7, "f: its content must be an object"),
    ],
)
def test_errors_of_a_dataclass(value: Any, message: str):
    with pytest.raises(UserError, match=message):
        checked(Tree, value, "f")


class Names(Schema):
    targets: Several[str] | str | None = None
    layers: dict[str, Inner] | None = None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"targets": ["a", 1]}, "f: field targets.1: must be a valid string, got 1"),
        ({"targets": 7}, "f: field targets: must be"),
        ({"layers": {"model.0.weight": {"size": "x"}}}, "f: field layers.model.0.weight.size: must be a valid int"),
        ({"layers": {"a b": {}}}, "f: field layers.a b.size is missing"),
        ({"layers": {"a": 1}}, "f: field layers.a: must be an object of fields, got 1"),
    ],
)
def test_errors_name_keys_of_any_kind_and_no_members_of_unions(value: Any, message: str):
    with pytest.raises(UserError, match=message):
        checked(Names, value, "f")


def test_values_are_shown_short():
    assert len(shown("x" * 10_000)) < 130
    assert len(shown({i: [i] * 100 for i in range(100)})) < 130
    assert re.fullmatch(r"a number of \d+ bits", shown(1 << 40_000))
