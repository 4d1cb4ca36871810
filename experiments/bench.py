"""Ours, theirs, the ratio and the floor, of everything whose speed a user feels, in one table.

Command: make bench                                                             (15 minutes on 2 cores)
Answer:  the table itself (results/bench)

Runs short forms of the benchmarks one after the other, each in a process of its own, and takes from the table of each
the lines that count. A ratio is above 1 where ours is better. The floor is what the same machine allows in the same
run: the bare matrix products or bytes of a line's work, or what has to happen before it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.tools.results import RESULTS, TABLE_JSON, markdown, write
from t2l_jax.progress import progress_bar

Rows = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Rows]


@dataclass(frozen=True)
class Bench:
    """Run the benchmarks and write one table."""

    only: tuple[str, ...] = ()
    """Names of some of them, whose table is printed only. Default: all."""
    out: Path = RESULTS / "bench"


def line(what: str, unit: str, ours: float, theirs: float | None, floor: float | None) -> dict[str, Any]:
    """A row of the table. Units with a slash are rates, of which more is better, others times."""
    rate = "/" in unit

    def better(than: float | None, mine: float) -> float | str:
        return "-" if than is None else round(mine / than if rate else than / mine, 2)

    return {
        "what": what,
        "unit": unit,
        "ours": ours,
        "theirs": "-" if theirs is None else theirs,
        "times as good": better(theirs, ours),
        "floor": "-" if floor is None else floor,
        "share of the floor": better(floor, ours),
    }


def _by(rows: Rows, **where: Any) -> Mapping[str, Any]:
    """The row with these values."""
    return next(row for row in rows if all(row[name] == value for name, value in where.items()))


def cold_start(tables: Tables) -> Iterator[dict[str, Any]]:
    """Whole commands in fresh processes."""
    seconds = {row["program"]: row["seconds"] for row in tables["Cold start"]}
    floor = seconds["import jax, flax"]
    yield line(
        "t2l generate, cold; theirs: sentence-transformers embeds the description",
        "s",
        seconds["t2l generate, one adapter to disk"],
        seconds["sentence-transformers, one embedding"],
        floor,
    )
    yield line("t2l --help", "s", seconds["t2l --help"], None, None)


def encoder_parity(tables: Tables) -> Iterator[dict[str, Any]]:
    """Texts to z."""
    ours, theirs = (_by(tables["Speed"], **{"run by": name}) for name in ("JAX", "sentence-transformers"))
    name = "descriptions a second"
    yield line("descriptions embedded; theirs: sentence-transformers", "1/s", ours[name], theirs[name], None)


def decoding(tables: Tables) -> Iterator[dict[str, Any]]:
    """A step of greedy decoding with an adapter for each row."""
    products = {row["rows"]: row["products, ms"] for row in tables["Floor of a step"] if row["side"] == "t2l_jax"}
    for rows, floor in products.items():
        step = {(row["side"], row["adapters"]): row["step, ms"] for row in tables["Speed"] if row["rows"] == rows}
        for kind, whose in (("one for each", "PEFT's mixed batch"), ("no adapter", "transformers")):
            what = f"a token of {rows} rows, {kind}; theirs: {whose}"
            yield line(what, "ms", step["t2l_jax", kind], step["PyTorch", kind], floor)


def hypernet_speed(tables: Tables) -> Iterator[dict[str, Any]]:
    """The hypernetwork itself, on one thread."""
    (rows,) = tables.values()
    for row in rows:
        what = f"64 adapters at once, head {row['head']}, one thread; theirs: a batched PyTorch network"
        yield line(what, "ms", row["ours, ms"], row["PyTorch, ms"], row["products, ms"])


def bulk_speed(tables: Tables) -> Iterator[dict[str, Any]]:
    """Descriptions to adapters."""
    value = {row["compute"]: row["value"] for row in tables["Compute"]}
    product = round(value["GFLOP/s of a matrix product"] / value["GFLOP an adapter"])
    yield line("adapters computed, batches of 64", "1/s", value["adapters/s, batches of 64"], None, product)
    piped = {row["pipeline"]: row["adapters/s"] for row in tables["Pipeline"]}
    what = "adapters from embeddings to packed files, bfloat16; floor: computed only"
    yield line(what, "1/s", piped["packed, bfloat16"], None, piped["compute alone"])
    disk = {row["to disk"]: row["value"] for row in tables["Whole commands"]}
    for kind, name in (("folders", "adapters/s"), ("packed files, bfloat16", "packed adapters/s")):
        yield line(f"adapters from text to {kind}, whole command", "1/s", disk[name], None, piped["compute alone"])


def sft_speed(tables: Tables) -> Iterator[dict[str, Any]]:
    """A training step."""
    seconds = {row["side"]: row["seconds a step"] for row in tables["Steps"]}
    floor = _by(tables["Floors"], **{"floor in": "float32"})["seconds"]
    yield line(
        "SFT step, float32; theirs: PyTorch + peft",
        "s",
        seconds["t2l_jax, float32"],
        seconds["PyTorch + peft, float32"],
        floor,
    )


@dataclass(frozen=True)
class Part:
    """A benchmark in its short form, and what of its tables counts."""

    lines: Callable[[Tables], Iterator[dict[str, Any]]]
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.lines.__name__


PARTS = (
    Part(cold_start, ("--rounds", "5")),
    Part(encoder_parity, ("--texts", "500", "--long", "20", "--rounds", "3")),
    Part(hypernet_speed, ("--rounds", "3")),
    Part(decoding, ("--rows", "1", "32", "--rounds", "2", "2")),
    Part(bulk_speed, ("--count", "500", "--kills", "0", "--rounds", "3", "--packed", "1000")),
    Part(sft_speed, ("--rounds", "3")),
)


def main(args: Bench) -> None:
    """Run the parts; one that fails ends the command with what it printed."""
    chosen = [part for part in PARTS if not args.only or part.name in args.only]
    if unknown := set(args.only) - {part.name for part in PARTS}:
        raise SystemExit(f"there is no benchmark {min(unknown)}: choose among {', '.join(p.name for p in PARTS)}")
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        bar = progress.add_task("benchmarks", total=len(chosen), rate="")
        for part in chosen:
            progress.update(bar, rate=part.name)
            out = Path(folder) / part.name
            program = [sys.executable, "-m", f"experiments.benchmarks.{part.name}", *part.arguments, "--out", str(out)]
            done = subprocess.run(program, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(program[1:])} failed:\n{done.stderr}")
            lines += part.lines(json.loads((out / TABLE_JSON).read_text())["tables"])
            progress.advance(bar)
    if args.only:
        print(markdown(lines))
    else:
        write(args.out, {"Bench": lines}, ["medians; each benchmark's own table, by its own command, has the spread"])


if __name__ == "__main__":
    main(tyro.cli(Bench))
