"""One process that reads damaged inputs: a line "KIND<tab>SEED" in, a line of JSON with what came of it out.

Where the system allows it, the process has a mount table of its own in which only its scratch folder can be written.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

OUTSIDE = "Read-only file system"  # what a write outside ends with


def main(good: Path, scratch: Path, *, confined: bool) -> None:
    from fuzz import kinds

    if confined:
        confine(scratch)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, seed = line.rstrip("\n").split("\t")
        folder = kinds.prepare(name, int(seed), good, scratch / "case")
        reset_peak()
        outcome, detail = "read", ""
        try:
            outcome = kinds.attempt(name, folder)
        except BaseException as error:  # every one is a finding
            own = [frame for frame in traceback.extract_tb(error.__traceback__) if "t2l_jax/" in frame.filename]
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
            outcome, detail = "failed", f"{type(error).__name__} at {place}: {error!s:.150}"
        if OUTSIDE in outcome + detail:
            outcome, detail = "failed", f"wrote outside: {outcome} {detail}"
        print(json.dumps({"outcome": outcome[:300], "detail": detail, "peak": peak()}), flush=True)


def confine(scratch: Path) -> None:
    """`scratch` becomes a memory disk of 1 GB, and everything else is read-only, in this process's mount namespace."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(scratch)], check=True)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if point != str(scratch) and not point.startswith(("/proc", "/sys", "/dev")):
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=False, stderr=subprocess.DEVNULL)
    try:
        Path(__file__).with_suffix(".probe").touch()
    except OSError:
        os.chdir(scratch)
        return
    raise RuntimeError("the project's own folder can still be written")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes of memory that this process has held since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), confined=sys.argv[3] == "confined")
