"""Checkpoints of a training run, by Orbax: what is trained, the optimiser and the step.

Beside what Orbax writes, each checkpoint has the checksums of its files: Orbax reads a flipped bit without a word.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, os_errors_explained, read_json

CHECKSUMS = "checksums.json"
State = TypeVar("State")


class Checkpoints:
    """The newest checkpoints of a run, one folder a step. Saving is asynchronous; leaving the context waits for it."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: State) -> None:
        """Save `state` as that of `step`, unless there is one. It is copied before this returns: it may be donated.

        Those of later steps are deleted: a run that went on from an earlier step has taken another course since.
        """
        self.wait()
        with os_errors_explained(self._folder):
            for later in (other for other in self._manager.all_steps() if other > step):
                self._manager.delete(later)
            if step not in self._manager.all_steps():
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, state: State) -> State:
        """The newest checkpoint that can be read, shaped and placed like `state`; `state` itself where there is none.

        A damaged one is said on stderr and set aside under the name `STEP.damaged`. Raises UserError where all are.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                check(self._folder / str(step))
                restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # Orbax and what it stands on raise of every kind
                damaged[step] = next(iter(str(error).splitlines()), type(error).__name__)[:300]
                continue
            self._set_aside(damaged, step)
            return restored
        if damaged:
            newest = max(damaged)
            raise UserError(
                f"{self._folder}: no checkpoint can be read (step {newest}: {damaged[newest]}); restore the folder "
                "from a copy, or delete it to begin again"
            )
        return state

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, reason in damaged.items():
            path = self._folder / str(step)
            print(f"t2l: {path} is damaged ({reason}); going on from step {good}", file=sys.stderr)
            number = sum(1 for _ in self._folder.glob(f"{step}.damaged*"))
            path.rename(path.with_name(f"{step}.damaged{number or ''}"))
        if damaged:
            self._manager.reload()

    def wait(self) -> None:
        """Return when what was saved is on the disk, with its checksums."""
        with os_errors_explained(self._folder):
            self._manager.wait_until_finished()
        for step in self._manager.all_steps():
            path = self._folder / str(step)
            if not (path / CHECKSUMS).exists():
                atomic_write(path / CHECKSUMS, json.dumps(checksums(path), indent=1))

    def close(self) -> None:
        """Wait, and let go of the folder."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file below a folder."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def check(folder: Path) -> None:
    """Raise UserError where a file of a checkpoint is not as it was written.

    One without checksums passes: its run was killed before they were written, which is when the next one is saved.
    """
    if (folder / CHECKSUMS).exists():
        written, now = read_json(folder / CHECKSUMS), checksums(folder)
        for name in written:
            if now.get(name) != written[name]:
                raise UserError(f"{name} is {'not what was written' if name in now else 'missing'}")
