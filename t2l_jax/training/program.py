"""What a compiled program does, read from its optimised HLO text: what it sends, and the cycles that it should take.

An operation in the body of a loop counts as often as the loop runs, and once where only the data know how often. The
bytes of a collective operation are those that a device receives in a ring of the n devices of its group, for an array
of s bytes that they share or make together:

    all-gather, reduce-scatter, all-to-all   s (n - 1) / n
    all-reduce                               2 s (n - 1) / n
    collective-permute                       s
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
UNKNOWN = 2**63 - 1  # cycles of an operation that the compiler cannot estimate
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=(\{[^{}]*\}|\S+)"
)


@dataclass(frozen=True)
class Instruction:
    """A line of the program."""

    name: str
    shape: str  # of the result
    operation: str
    rest: str  # operands and attributes

    def attribute(self, pattern: str) -> str | None:
        """What the group of this pattern matches among operands and attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def scope(self) -> str:
        """Where in the source it comes from: names of functions and modules with slashes."""
        return self.attribute(r'op_name="([^"]*)"') or ""


@dataclass(frozen=True)
class Collective:
    """A collective operation: the bytes that a device receives each time, and how often it is done in a step."""

    kind: str
    shape: str
    group: int  # devices
    size: int
    times: int


@dataclass
class Program:
    """An optimised program for so many devices."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""
    devices: int = 1

    @classmethod
    def parse(cls, text: str, devices: int) -> "Program":
        """Read the text of a compiled program."""
        program, body = cls(devices=devices), []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                body = program.computations[header[2]] = []
                program.entry = header[2] if header[1] else program.entry
            elif match := _INSTRUCTION.match(line):
                body.append(Instruction(match[1], match[2], match[3], match[4]))
        return program

    def collectives(self) -> list[Collective]:
        """All collective operations between devices."""
        found: dict[tuple[str, ...], Collective] = {}
        for own, times, loop in self._instructions(self.entry, 1, ""):
            kind = own.operation.removesuffix("-start")
            group = self._group(own) if kind in KINDS else 1
            if group > 1:
                # The parts of an asynchronous operation, spread over several fusions, share its channel.
                channel = own.attribute(r"channel_id=(\d+)")
                key = (loop, kind, own.name) if channel is None else (loop, kind, "channel", channel)
                found[key] = Collective(kind, own.shape, group, _received(kind, own, group), times)
        return list(found.values())

    def cycles(self) -> Iterator[tuple[str, int]]:
        """Scope and cycles of each operation by the compiler's own estimate, where it makes one (TPU)."""
        for own, times, _ in self._instructions(self.entry, 1, ""):
            cycles = int(own.attribute(r'"estimated_cycles":"(\d+)"') or 0)
            if 0 < cycles < UNKNOWN:
                yield own.scope, times * cycles

    def _instructions(self, name: str, times: int, loop: str) -> Iterator[tuple[Instruction, int, str]]:
        """Every instruction from here on, with how often it is done, and the loop that it is in."""
        for own in self.computations[name]:
            yield own, times, loop
            if own.operation.endswith(("-done", "-update")):  # they name what was seen where it starts
                continue
            repeats = own.operation == "while"
            inner, inside = (times * self._trips(own), own.name) if repeats else (times, loop)
            for called in _CALLED.findall(own.rest):
                for each in re.findall(r"[\w.\-]+", called):
                    if each in self.computations:
                        yield from self._instructions(each, inner, inside)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs, as the compiler says or as its condition compares; 1 where only the data know."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.\-]+)") or "", [])
        limits = [own.rest.partition(")")[0] for own in condition if own.operation == "constant"]
        simple = len(condition) <= 4 and any("direction=LT" in own.rest for own in condition)
        return int(limits[0]) if simple and len(limits) == 1 and limits[0].isdigit() else 1

    def _group(self, own: Instruction) -> int:
        """The number of devices in a group of a collective operation: `{{0,1},{2,3}}`, `[2,2]<=[4]` or `mesh[...]`."""
        if own.operation.startswith("collective-permute"):
            return self.devices
        if listed := own.attribute(r"replica_groups=\{\{([\d,]*)\}"):
            return len(listed.split(","))
        if iota := own.attribute(r"replica_groups=\[\d+,(\d+)\]"):
            return int(iota)
        if mesh := own.attribute(r"replica_groups=mesh\[([^\]]*)\]"):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
            axes = own.attribute(r"replica_groups=mesh\[[^{]*\{([^}]*)\}") or ""
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", axes))
        return self.devices


def _received(kind: str, own: Instruction, group: int) -> int:
    size = _bytes(own.shape)
    if own.operation == "all-gather-start":  # its result holds the operand, and what is gathered
        size = size * group // (group + 1)
    if kind == "collective-permute":
        return size // 2 if own.operation.endswith("-start") else size
    if kind == "reduce-scatter":
        size *= group
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) // group


def _bytes(shape: str) -> int:
    """Of all arrays in the text of a shape. Beside arrays, scalars are the compiler's own."""
    found = _ARRAY.findall(shape)
    arrays = [each for each in found if each[2]] or found
    return sum(
        math.prod(int(axis) for axis in axes.split(",") if axis) * int(bits or 8) // 8 for _, bits, axes in arrays
    )
