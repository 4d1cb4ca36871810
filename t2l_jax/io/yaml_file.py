"""YAML from outside, as the plain data that a schema checks: mappings, lists, texts and nulls.

The files of tasks hold nothing else, so no tag is converted: a number, a date or a boolean becomes a `NotText`, which
no field takes. Files of settings are read with `typed`, which converts plain numbers and booleans. Aliases are followed
as far as a file may be said to write their content out.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
EXPANSION = 10  # what aliases stand for may make a file at most this many times as long

_TAG = "tag:yaml.org,2002:"
_RESOLVER = yaml.resolver.Resolver()  # the tag of a scalar without one
# Booleans and numbers as every writer of YAML writes them; what else stands for one (yes, 1:30, 0o7) is not converted.
_BOOLEANS = {"true": True, "false": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9]\d{0,17})")
_FLOAT = re.compile(r"[-+]?\d{1,17}\.\d{0,17}([eE][-+]\d{1,3})?")


class NotText:
    """A scalar that is no text: a number, a boolean, a date or something with a tag."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __repr__(self) -> str:
        return self._written


def read_yaml(path: Path, *, typed: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; with `typed`, plain numbers and booleans are converted.

    Raises UserError if it cannot be read, is no mapping, names a key twice, or is larger, deeper or more often
    repeated by its aliases than a task's description can be.
    """
    with os_errors_explained(path, "read"), open_file(path) as file:
        return parse_yaml(file.read(MAX_BYTES + 1), str(path), typed=typed)


def parse_yaml(data: bytes, where: str, *, typed: bool = False) -> dict[str, Any]:
    """The mapping in the text of a YAML file; errors as in `read_yaml`, with `where` as the file's name."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{where}: larger than {MAX_BYTES:,} bytes, too much for a file of descriptions or settings")
    loader = yaml.CSafeLoader(data)
    try:
        node = loader.get_single_node()
        fields = None if node is None else _Reader(EXPANSION * len(data), typed).plain(node)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected fields such as `name: ...`, got {type(fields).__name__}")
    return fields


class _Reader:
    """Turns nodes into plain data, of which there may be `room` characters and items in all."""

    def __init__(self, room: int, typed: bool) -> None:
        self._room = room
        self._typed = typed

    def plain(self, node: Any, depth: int = 0) -> Any:
        line = node.start_mark.line + 1
        self._room -= 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self._room < 0:
            raise UserError(f"line {line}: its aliases stand for too much: write out what they repeat")
        if depth > MAX_DEPTH:
            raise UserError(f"line {line}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, yaml.ScalarNode):
            if node.tag not in (f"{_TAG}str", _RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False))):
                tag = node.tag.replace(_TAG, "!!")[:80]
                raise UserError(f"line {line}: {node.value[:80]!r} is no {tag}: remove the tag")
            if self._typed and (value := _converted(node.tag, node.value)) is not None:
                return value
            return {f"{_TAG}str": node.value, f"{_TAG}null": None}.get(node.tag, NotText(node.value))
        if node.tag not in (f"{_TAG}seq", f"{_TAG}map"):
            raise UserError(f"line {line}: not YAML without tags: remove {node.tag.replace(_TAG, '!!')[:80]}")
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, depth + 1) for item in node.value]
        mapping: dict[str, Any] = {}
        for key_node, value in node.value:
            key, line = self.plain(key_node, depth + 1), key_node.start_mark.line + 1
            if key_node.tag == f"{_TAG}merge":
                raise UserError(f"line {line}: merge keys (<<) are not read: write the fields out")
            if not isinstance(key, str):
                raise UserError(f"line {line}: a key must be a text: put it in quotes")
            if key in mapping:
                raise UserError(f"line {line}: the key {key[:80]!r} is there twice")
            mapping[key] = self.plain(value, depth + 1)
        return mapping


def _converted(tag: str, text: str) -> bool | int | float | None:
    """A plain boolean or number, else None."""
    if tag == f"{_TAG}bool":
        return _BOOLEANS.get(text)
    if tag == f"{_TAG}int" and _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if tag == f"{_TAG}float" and _FLOAT.fullmatch(text) else None
