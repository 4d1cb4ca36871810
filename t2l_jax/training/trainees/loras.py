"""Baselines: directly trained LoRAs, one for all tasks or one per task.

Axes: T tasks of a batch, N tasks of a run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from t2l_jax.decoder import DecoderConfig
from t2l_jax.hypernet import Condition, HypernetConfig, Variables
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter, LoraSpec, init_adapter, stack
from t2l_jax.training import initial
from t2l_jax.training.trainees.base import Extra, Release, Trainee

ADAPTERS_FOLDER = "adapters"  # of a run folder


@dataclass(frozen=True)
class LoraTable(Trainee):
    """A table [N] with one LoRA per task, all trained in one program: the task-specific "oracles".

    All start from the same A, as runs of one seed would, so that the factors of different tasks are comparable.
    """

    num_tasks: int
    spec: LoraSpec

    takes_any_split = True
    one_per_task = True

    @classmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "LoraTable":
        return cls(num_tasks, spec)

    def init(self, key: PRNGKeyArray) -> Variables:
        return {"params": jax.vmap(lambda key: init_adapter(key, self.spec))(self._keys(key))}

    def _keys(self, key: PRNGKeyArray) -> Key[Array, " N"]:
        """The key of each task's A."""
        return jnp.broadcast_to(key, self.num_tasks)

    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        return variables["params"][conditions.task], jnp.zeros((), jnp.float32)

    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        """Write one PEFT folder per task, replacing earlier ones of the run."""
        target = folder / ADAPTERS_FOLDER
        save_peft(variables["params"], target, base_model=release.base_name, names=release.tasks, replace=True)
        return target


@dataclass(frozen=True)
class SeededLoraTable(LoraTable):
    """A table of LoRAs each of which starts from an A of its own, as runs of different seeds would."""

    def _keys(self, key: PRNGKeyArray) -> Key[Array, " N"]:
        return jax.random.split(key, self.num_tasks)


@dataclass(frozen=True)
class SharedLora(Trainee):
    """One LoRA for all tasks: the multi-task baseline."""

    spec: LoraSpec

    takes_new_tasks = True
    begins_from = "a PEFT folder"

    @classmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "SharedLora":
        return cls(spec)

    def init(self, key: PRNGKeyArray) -> Variables:
        return LoraTable(1, self.spec).init(key)

    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        tasks: Any = conditions.task
        return variables["params"][jnp.zeros_like(tasks)], jnp.zeros((), jnp.float32)

    def begin_from(self, location: str, release: Release, base: DecoderConfig | None) -> Variables:
        return {"params": stack([initial.adapter_at(location, self.spec, base)])}

    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        """Write a PEFT folder, replacing an earlier one of the run."""
        target = folder / ADAPTERS_FOLDER
        save_peft(variables["params"][0], target, base_model=release.base_name, replace=True)
        return target
