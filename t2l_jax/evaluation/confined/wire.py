"""Calls between the process of a test and that of a program, as lines of JSON over two pipes.

Only plain data crosses: numbers, texts, containers and a few types of the standard library, rebuilt on the other side.
So nothing that a program defines (`__eq__`, say) runs where the test compares. Another object stays where it is: the
other side gets a `Remote` that passes on calls, attributes and iteration, and is equal to itself alone. What a function
does to its arguments happens to the caller's objects too, and an object that is there twice stays one.
"""

import builtins
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

PASSED, FAILED, UNCONFINED = 42, 43, 44  # exit statuses: no program that ends by accident ends with one of them
LONGEST = 16 << 20  # bytes of one line
_CONTAINERS: dict[str, type] = {"list": list, "dict": dict, "set": set, "bytearray": bytearray}
_FIXED: dict[str, type] = {"tuple": tuple, "frozenset": frozenset}
_PARTS: dict[str, Callable[[Any], Any]] = {  # what a value of a type is made of
    "builtins.complex": lambda value: (value.real, value.imag),
    "builtins.range": lambda value: (value.start, value.stop, value.step),
    "collections.deque": lambda value: (list(value),),
    "array.array": lambda value: (value.typecode, list(value)),
    "decimal.Decimal": lambda value: (str(value),),
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
} | {f"datetime.{name}": lambda value: value.__reduce__()[1] for name in ("date", "datetime", "time", "timedelta")}


class Remote:
    """An object of the other process."""

    __slots__ = ("_number_", "_peer_")

    def __init__(self, peer: "Peer", number: int):
        object.__setattr__(self, "_peer_", peer)
        object.__setattr__(self, "_number_", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer_.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer_.call(getattr, (self, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer_.call(setattr, (self, name, value))

    def __getitem__(self, key: Any) -> Any:
        return self.__getattr__("__getitem__")(key)


def _forward(function: Callable[..., Any]) -> Callable[[Remote], Any]:
    return lambda self: self._peer_.call(function, (self,))


for _function in (bool, float, int, iter, len, next, repr, str):
    setattr(Remote, f"__{_function.__name__}__", _forward(_function))


@contextmanager
def _or_end() -> Iterator[None]:
    """A message that this module did not write ends the process."""
    try:
        yield
    except Exception:
        os._exit(FAILED)


class _Objects:
    """The containers of one call, by number: the same on both sides."""

    def __init__(self) -> None:
        self.by_number: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # by id; by_number keeps the objects alive
        self.written: set[int] = set()  # in the message under way

    def number(self, value: Any) -> int:
        number = self.numbers.setdefault(id(value), len(self.numbers))
        self.by_number[number] = value
        return number

    def at(self, number: int, kind: type) -> Any:
        if number not in self.by_number:
            self.number(kind())
        value = self.by_number[number]
        if not isinstance(value, kind):
            raise TypeError(f"a {type(value).__name__} became a {kind.__name__}")
        return value


class Peer:
    """One side. The program's is `open`: the test may call anything there. The test's serves what it handed out."""

    def __init__(self, incoming: int, outgoing: int, *, open: bool):
        self._incoming = os.fdopen(incoming, "rb")
        self._outgoing = os.fdopen(outgoing, "wb")
        self._open = open
        self._exported: list[Any] = []
        self._remotes: dict[int, Remote] = {}
        kinds = (kind for kind in vars(builtins).values() if isinstance(kind, type))
        self.errors = {kind.__name__: kind for kind in kinds if issubclass(kind, BaseException)}

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """What a function of the other side returns or raises."""
        objects = _Objects()
        self.send("call", self._encode((function, list(args), kwargs or {}), objects))
        while True:
            kind, body = self.receive()
            if kind == "call":
                self._answer(body)
            elif kind == "return":
                with _or_end():
                    return self._decode(body, objects)[0]
            else:
                with _or_end():
                    error = self._error(*body)
                if isinstance(error, StopIteration) and function is not next:
                    error = RuntimeError("StopIteration")  # would end the test's loop as if all was well
                raise error

    def serve(self) -> NoReturn:
        """Answer calls until the other side ends."""
        while True:
            _, body = self.receive()
            self._answer(body)

    def send(self, kind: str, body: Any) -> None:
        line = json.dumps([kind, body]).encode() + b"\n"
        if len(line) > LONGEST:
            raise ValueError("too large to be handed over")
        try:
            self._outgoing.write(line)
            self._outgoing.flush()
        except OSError:
            os._exit(FAILED)

    def receive(self, missing: int = FAILED) -> tuple[str, Any]:
        """The next message. Without one this process ends: no exception that a test may expect comes of it."""
        line = self._incoming.readline(LONGEST)
        if not line.endswith(b"\n"):
            os._exit(missing)
        with _or_end():
            kind, body = json.loads(line)
        return kind, body

    def remote(self, number: int) -> Remote:
        return self._remotes.setdefault(number, Remote(self, number))

    def export(self, value: Any) -> int:
        for number, known in enumerate(self._exported):
            if known is value:
                return number
        self._exported.append(value)
        return len(self._exported) - 1

    def _answer(self, message: Any) -> None:
        objects = _Objects()
        try:
            function, args, kwargs = self._decode(message, objects)
            if not self._open and not any(function is known for known in self._exported):
                raise AttributeError("only its functions are handed out by a test")
            self.send("return", self._encode((function(*args, **kwargs), args, kwargs), objects))
        except BaseException as error:
            try:
                said = self._encode(error.args, _Objects())
            except Exception:
                said = {"tuple": []}
            self.send("raise", [[kind.__name__ for kind in type(error).__mro__], said])

    def _error(self, names: list[str], said: Any) -> BaseException:
        kind = next((self.errors[name] for name in names if name in self.errors), Exception)
        try:
            return kind(*self._decode(said, _Objects()))
        except Exception:  # it has arguments of its own
            return Exception(kind.__name__)

    def _encode(self, value: Any, objects: _Objects) -> Any:
        def each(items: Any) -> list[Any]:
            return [self._encode(item, objects) for item in items]

        if value is None or isinstance(value, bool | float | str):
            return value
        if isinstance(value, int):
            return int(value) if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
        if isinstance(value, bytes):
            return {"bytes": value.decode("latin-1")}
        for tag, kind in _FIXED.items():
            if isinstance(value, kind):
                return {tag: each(value)}
        for tag, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                number = objects.number(value)
                if number in objects.written:
                    return {"again": number}
                objects.written.add(number)
                items = [item for pair in value.items() for item in pair] if isinstance(value, dict) else value
                return {tag: [number, *each(items)]}
        return self._encode_other(value, each)

    def _encode_other(self, value: Any, each: Callable[[Any], list[Any]]) -> Any:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind is Remote and value._peer_ is self:
            return {"yours": value._number_}
        if name in _PARTS:
            return {"new": [name, *each(_PARTS[name](value))]}
        if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return each([value.item()])[0]
        own = getattr(value, "__name__", None)
        if isinstance(own, str) and getattr(builtins, own, None) is value:
            return {"builtin": own}
        if kind is type(sys) and own in sys.stdlib_module_names:
            return {"module": own}
        if self._open or (callable(value) and not isinstance(value, type)):
            return {"mine": self.export(value)}
        raise TypeError(f"a program gets plain data and functions from a test, not {name}")

    def _decode(self, data: Any, objects: _Objects) -> Any:
        if not isinstance(data, dict):
            if isinstance(data, list):
                raise TypeError("a list without its kind")
            return data
        ((tag, body),) = data.items()
        if tag in _CONTAINERS:
            return self._fill(objects.at(body[0], _CONTAINERS[tag]), body[1:], objects)
        if tag in _FIXED:
            return _FIXED[tag](self._decode(item, objects) for item in body)
        match tag:
            case "again":
                return objects.by_number[body]
            case "int":
                return int(body, 16)
            case "bytes":
                return body.encode("latin-1")
            case "yours":
                return self._exported[body]
            case "mine":
                return self.remote(body)
            case "new" if body[0] in _PARTS:
                module, name = body[0].split(".")
                return getattr(import_module(module), name)(*(self._decode(item, objects) for item in body[1:]))
            case "module" if body in sys.stdlib_module_names:
                return import_module(body)
            case "builtin" if self._open or isinstance(getattr(builtins, body), type):
                return getattr(builtins, body)
        raise AttributeError(f"a test hands out no {tag}")

    def _fill(self, container: Any, body: list[Any], objects: _Objects) -> Any:
        items = [self._decode(item, objects) for item in body]
        if isinstance(container, list | bytearray):
            container[:] = items
        else:
            container.clear()
            container.update(zip(items[::2], items[1::2], strict=True) if isinstance(container, dict) else items)
        return container
