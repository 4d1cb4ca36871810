"""The interface of trainees, which learn to produce adapters. Code tells them apart by class, never by name.

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
from t2l_jax.io.descriptions import NONE, Descriptions
from t2l_jax.lora import Adapter, LoraSpec

Extra = Float[Array, ""]  # a trainee's own loss, added to the objective (for vector quantisation)


@dataclass(frozen=True)
class Release:
    """Metadata to publish with the weights: the run's inputs, and how it was trained."""

    base: str  # location of the base LLM
    base_name: str
    encoder: Encoder | None
    prompt: Any  # one of published.PromptModes
    tasks: tuple[str, ...]  # names, in the order of `Condition.task`
    training: str  # a paragraph for the model card
    chat_template: str | None = None  # in place of the base model's own
    descriptions: Descriptions = NONE  # of the tasks


class Trainee(ABC):
    """What a run trains: maps variables and the conditions of T tasks to T adapters.

    Class attributes hold what a recipe needs to know before data is read. Instances are hashable (cache keys of the
    compiled step) and hold only shapes. To add a trainee, write such a class and list it in `TRAINEES`.
    """

    reads_text: ClassVar[bool] = False  # it is conditioned on embedded descriptions
    reads_tokens: ClassVar[bool] = False  # of these descriptions it reads the tokens: it trains their encoder, too
    reads_instances: ClassVar[bool] = False  # it is conditioned on embedded inputs: an adapter for each example
    takes_new_tasks: ClassVar[bool] = False  # it can be validated on tasks it was not trained on
    takes_any_split: ClassVar[bool] = False  # it may be trained on held-out tasks
    takes_offset: ClassVar[bool] = False  # a fixed or learned adapter can be added to its outputs
    one_per_task: ClassVar[bool] = False  # its size depends on the number of tasks
    reconstructs: ClassVar[bool] = False  # it can be trained on a library of adapters
    begins_from: ClassVar[str] = ""  # kind of location for `init_from`; empty: fresh variables only
    spec: LoraSpec  # of the adapters

    @classmethod
    def form(cls, net: HypernetConfig, location: str) -> HypernetConfig:
        """The recipe's `hypernet` with what the weights at a location, to begin from, decide."""
        return net

    @classmethod
    @abstractmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "Trainee":
        """The trainee of a recipe. `dim` is the text encoder's width, None if no text is read."""

    @classmethod
    def conditions(
        cls, descriptions: Sequence[Sequence[str]], places: Sequence[int], z: Sequence[np.ndarray] | None
    ) -> list[Condition]:
        """The conditions [n] of each task, one of which is drawn each time.

        `places` are the tasks' indices among the training tasks (-1 for others); `z` holds the embeddings [n, z] of
        each task's descriptions (or, with `reads_tokens`, their tokens [n, S]), or is None if no text is read.
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
        """Adapters [T] and the trainee's own loss. With a key, dropout is active."""

    def begin_from(self, location: str, release: Release, base: DecoderConfig | None) -> Variables:
        """Load variables from a location. Raises UserError that names the first field that differs from the recipe."""
        raise UserError(f"init_from: {location} cannot be taken: this trainee begins with fresh variables")

    @classmethod
    def chat_template(cls, location: str) -> str | None:
        """The chat template of what `begin_from` loads; None for the base model's own."""
        return None

    def begin_as(self, offset: Path, fresh: Variables, base: DecoderConfig | None) -> Variables:
        """Fresh variables with which every output equals the adapter in a PEFT folder."""
        raise UserError(f"offset_init: {offset} cannot be used: this trainee has no offset")

    @abstractmethod
    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        """Write the trained model into the run folder; return its path."""
