"""What every trainee is: something that is trained to write adapters, told apart by a class and never by a name.

Axes: T tasks of a batch, n conditions of a task.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from t2l_jax.decoder import DecoderConfig
from t2l_jax.encoder import Encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, Variables
from t2l_jax.lora import Adapter, LoraSpec

Extra = Float[Array, ""]  # a trainee's own loss, added to the objective (vector quantisation has one)


@dataclass(frozen=True)
class Release:
    """What is published beside the weights: what the run read, and how it was trained."""

    base: str  # location of the base LLM
    base_name: str
    encoder: Encoder | None
    prompt: Any  # one of published.PromptModes
    tasks: tuple[str, ...]  # names, in the order of `Condition.task`
    training: str  # a paragraph for the model card


class Trainee(ABC):
    """What a run trains: variables and the conditions of T tasks in, an adapter for each task out.

    The class says what a recipe must know before anything is read; an instance is hashable (the compiled step is cached
    by it) and holds shapes only. A new trainee is one such class, and one line in `TRAINEES`.
    """

    reads_text: ClassVar[bool] = False  # descriptions are embedded for it
    takes_new_tasks: ClassVar[bool] = False  # it can be asked about tasks that it has not been trained on
    takes_any_split: ClassVar[bool] = False  # it may be trained on tasks that are kept for evaluation
    takes_offset: ClassVar[bool] = False  # an adapter can be added to its outputs
    begins_from: ClassVar[str] = ""  # what `init_from` names; empty: it always begins with fresh variables
    spec: LoraSpec  # of the adapters

    @classmethod
    @abstractmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "Trainee":
        """The trainee of a recipe. `dim` is the width of z, None if no text is read."""

    @classmethod
    def conditions(
        cls, descriptions: Sequence[Sequence[str]], places: Sequence[int], z: Sequence[np.ndarray] | None
    ) -> list[Condition]:
        """What is read of each task, n conditions of which one is drawn each time.

        `places` are the tasks' places among those trained on (-1: not one of them); `z` holds, if text is read, the
        embeddings [n, z] of each task's descriptions.
        """
        return [
            Condition(None if z is None else z[index], np.full(len(texts), place, np.int32))
            for index, (texts, place) in enumerate(zip(descriptions, places, strict=True))
        ]

    @abstractmethod
    def init(self, key: PRNGKeyArray) -> Variables:
        """Fresh variables: "params" are trained, "constants" are not."""

    @abstractmethod
    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        """Adapters [T] and the trainee's own loss. A key switches dropout on."""

    def begin_from(self, location: str, release: Release, base: DecoderConfig) -> Variables:
        """The variables at a location. Raises UserError that names the field in which they differ from the recipe."""
        raise UserError(f"init_from: {location} cannot be taken: this trainee begins with fresh variables")

    def begin_as(self, offset: Path, fresh: Variables, base: DecoderConfig) -> Variables:
        """Fresh variables with which every output is the adapter in a PEFT folder."""
        raise UserError(f"offset_init: {offset} cannot be used: this trainee has no offset")

    @abstractmethod
    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        """Write what was trained below the run folder; return where."""
