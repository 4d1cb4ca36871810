"""Checkpoints of a training run, by Orbax: what is trained, the optimiser and the step."""

from pathlib import Path
from types import TracebackType
from typing import TypeVar

import jax
import orbax.checkpoint as ocp

State = TypeVar("State")


class Checkpoints:
    """The newest checkpoints of a run, one folder a step. Saving is asynchronous; leaving the context waits for it."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: State) -> None:
        """Save `state` as that of `step`. The arrays are copied before this returns, so they may be donated."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, state: State) -> State:
        """The newest checkpoint, shaped and placed like `state`; `state` itself where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return state
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
