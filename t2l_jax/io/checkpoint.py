"""Checkpoints of a training run with Orbax: parameters, optimiser state and step.

Each checkpoint also holds checksums of its files, since Orbax does not detect a flipped bit. Several processes save and
restore together, on a disk that all share.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

from t2l_jax.distributed import barrier, is_main, several, together
from t2l_jax.errors import Stopped, UserError
from t2l_jax.io.files import atomic_write, file_sha256, os_errors_explained, read_json

CHECKSUMS = "checksums.json"
OVERHEAD = 1 << 19  # bytes that Orbax writes beside the arrays, and more
State = TypeVar("State")


class Checkpoints:
    """The newest checkpoints of a run, one folder per step. Saving is asynchronous; leaving the context waits."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder.absolute()
        if os.fsencode(self._folder).decode(errors="replace") != str(self._folder):
            raise UserError(f"{folder}: its name is not UTF-8, which Orbax needs: choose another folder")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: State) -> None:
        """Save `state` as the checkpoint of `step`, unless it exists. The state is copied first, so it may be donated.

        Checkpoints of later steps are deleted: a run resumed from an earlier step has diverged from them. Raises
        UserError if the disk has no room for it.
        """
        self.wait()
        with _full_disk_explained(self._folder):
            for later in (other for other in self._manager.all_steps() if other > step):
                self._manager.delete(later)
            if step not in self._manager.all_steps():
                self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def _check_room(self, size: int) -> None:
        """Raise UserError if the disk is too full: Orbax's threads would each write the same traceback."""
        with together(), os_errors_explained(self._folder):
            if is_main() and shutil.disk_usage(self._folder).free < OVERHEAD + size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def restore_latest(self, state: State) -> State:
        """The newest readable checkpoint, shaped and placed like `state`; `state` itself if there are no checkpoints.

        A damaged one is reported on stderr and renamed to `STEP.damaged`. Raises UserError if all are damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, abstract)
            except UserError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, step)
            return restored
        if damaged:
            newest = max(damaged)
            raise UserError(
                f"{self._folder}: no checkpoint can be read (step {newest}: {damaged[newest]}); restore the folder "
                "from a backup, or delete it to start over"
            )
        return state

    def _restore(self, step: int, abstract: State) -> State:
        """A checkpoint. Raises UserError, in all processes, if one of them cannot read it."""
        with together():
            if is_main():
                check(self._folder / str(step))
        with together():
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # Orbax and its dependencies raise any kind of exception
                raise UserError(next(iter(str(error).splitlines()), type(error).__name__)[:300]) from error

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, reason in damaged.items() if is_main() else ():
            path = self._folder / str(step)
            print(f"t2l: {path} is damaged ({reason}); resuming from step {good}", file=sys.stderr)
            number = sum(1 for _ in self._folder.glob(f"{step}.damaged*"))
            path.rename(path.with_name(f"{step}.damaged{number or ''}"))
        if damaged:
            barrier()
            self._manager.reload()

    def wait(self) -> None:
        """Wait until saved checkpoints are on disk, then write their checksums."""
        with _full_disk_explained(self._folder):
            self._manager.wait_until_finished()
        with together():
            for step in self._manager.all_steps() if is_main() else ():
                path = self._folder / str(step)
                if not (path / CHECKSUMS).exists():
                    atomic_write(path / CHECKSUMS, json.dumps(checksums(path), indent=1))

    def close(self) -> None:
        """Wait, then release the folder."""
        try:
            self.wait()
        except BaseException:
            with suppress(Exception):  # what failed once fails again
                self._manager.close()
            raise
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if several() and not (error is None or isinstance(error, Stopped)):
            self._manager.close()  # the others may not have failed, and would not wait together with this process
        else:
            self.close()


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """`os_errors_explained`, also for a full disk in Orbax's own words."""
    with os_errors_explained(folder):
        try:
            yield
        except Exception as error:  # of any kind
            if "RESOURCE_EXHAUSTED" in str(error) or os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file in a folder and its subfolders."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            sums[str(path.relative_to(folder))] = file_sha256(path)
    return sums


def check(folder: Path) -> None:
    """Raise UserError if a file of a checkpoint is missing or has changed.

    A checkpoint without checksums passes: they are written with the next save, before which its run was killed.
    """
    if (folder / CHECKSUMS).exists():
        written, now = read_json(folder / CHECKSUMS), checksums(folder)
        for name in written:
            if now.get(name) != written[name]:
                raise UserError(f"{name} is {'not what was written' if name in now else 'missing'}")
