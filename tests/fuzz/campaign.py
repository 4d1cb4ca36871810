"""Reads thousands of damaged inputs in watched processes, and counts what came of them.

    PYTHONPATH=tests python -m fuzz.campaign --count 10000 --seed 1 --workers 2

An input fails by a traceback, by taking over 10 s, by a process of over 2 GB, by a write outside its folder, or by
numbers that are neither the reference's nor a refusal. Then the status is 1, and `--only KIND --seed N --count 1`
reads it again.
"""

import argparse
import collections
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
SECONDS, START_SECONDS = 10, 180
MEMORY = 2 << 30


@dataclass
class Tally:
    """Counts by kind of input, and the failures."""

    counts: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    failures: list[tuple[str, int, str]] = field(default_factory=list)
    longest: float = 0.0
    peak: int = 0

    def add(self, kind: str, seed: int, answer: dict[str, str | int], seconds: float) -> None:
        outcome = str(answer["outcome"]).partition(":")[0]
        self.counts[kind][outcome] += 1
        self.longest, self.peak = max(self.longest, seconds), max(self.peak, int(answer.get("peak", 0)))
        if outcome == "failed":
            self.failures.append((kind, seed, str(answer["detail"])))

    def table(self) -> str:
        names = ["read", "read, as the reference does", "read, and the reference raises", "refused", "failed"]
        lines = ["| kind | inputs | " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) + 1)]
        for kind, counts in sorted(self.counts.items()):
            lines.append(f"| {kind} | {counts.total()} | " + " | ".join(str(counts[name]) for name in names) + " |")
        total = sum(self.counts.values(), collections.Counter())
        lines.append(f"| all | {total.total()} | " + " | ".join(str(total[name]) for name in names) + " |")
        lines.append(f"\nLongest {self.longest:.1f} s, most memory {self.peak / 1e9:.2f} GB.")
        return "\n".join(lines)


class Worker:
    """A process that reads inputs, started again when one of them kills it."""

    def __init__(self, good: Path, scratch: Path) -> None:
        self.good, self.scratch = good, scratch
        scratch.mkdir(parents=True)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        prefix = private_mounts()
        environment = {
            **os.environ,
            **{name: str(self.scratch) for name in ("HOME", "T2L_CACHE", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME")},
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
            "TQDM_DISABLE": "1",
        }
        command = [*prefix, sys.executable, "-m", "fuzz.worker", str(self.good), str(self.scratch)]
        self.process = subprocess.Popen(
            [*command, "confined" if prefix else "open"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        answer = self.answer(START_SECONDS, 1 << 40)
        if not answer.get("ready"):
            raise RuntimeError(f"a worker does not start: {answer}")

    def ask(self, kind: str, seed: int) -> dict[str, str | int]:
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind}\t{seed}\n")
        self.process.stdin.flush()
        return self.answer(SECONDS, MEMORY)

    def answer(self, seconds: float, memory: int) -> dict[str, str | int]:
        """The next line; "failed" if it does not come in time, or if the process grows or ends."""
        assert self.process is not None
        assert self.process.stdout is not None
        end, problem = time.monotonic() + seconds, f"no end after {seconds} s"
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while time.monotonic() < end:
                if selector.select(0.05):
                    line = self.process.stdout.readline()
                    if line.startswith("{"):
                        return json.loads(line)
                    if not line:
                        problem = f"the process ended with status {self.process.wait()}"
                        break
                elif self.memory() > memory:
                    problem = f"more than {memory >> 20} MB of memory"
                    break
        self.stop()
        return {"outcome": "failed", "detail": problem}

    def memory(self) -> int:
        assert self.process is not None
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def private_mounts() -> list[str]:
    """The command prefix that gives a process mounts of its own; empty where the system does not allow it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    prefix = ["unshare", *user, "--mount", "--propagation", "private"]
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return []
    return prefix if allowed else []


def choose(count: int, seed: int, only: str | None) -> list[tuple[str, int]]:
    """The inputs of a campaign: kinds by their weights, each with a seed of its own."""
    from fuzz.kinds import KINDS

    names = [only] if only else list(KINDS)
    drawn = random.Random(seed).choices(names, [KINDS[name].weight for name in names], k=count)
    return [(name, seed + index) for index, name in enumerate(drawn)]


def campaign(count: int, seed: int, workers: int, only: str | None = None) -> Tally:
    """Read `count` inputs. Progress goes to stderr."""
    from fuzz.good import make_good

    tally, inputs = Tally(), iter(list(enumerate(choose(count, seed, only))))
    with tempfile.TemporaryDirectory() as place:
        make_good(Path(place) / "good")

        def work(number: int) -> None:
            worker = Worker(Path(place) / "good", Path(place) / f"scratch{number}")
            try:
                for index, (kind, own) in inputs:
                    began = time.monotonic()
                    answer = worker.ask(kind, own)
                    tally.add(kind, own, answer, time.monotonic() - began)
                    if answer["outcome"] == "failed":
                        print(f"{kind} --seed {own}: {answer['detail']}", file=sys.stderr, flush=True)
                    if index % 100 == 99:
                        print(f"{index + 1}/{count}, {len(tally.failures)} failed", file=sys.stderr, flush=True)
            finally:
                worker.stop()

        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work, number) for number in range(workers)]:
                done.result()
        shutil.rmtree(Path(place) / "good")
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", metavar="KIND")
    options = parser.parse_args()
    result = campaign(options.count, options.seed, options.workers, options.only)
    print(result.table())
    for kind, own, detail in result.failures:
        print(f"{kind} --seed {own}: {detail}")
    sys.exit(bool(result.failures))
