"""What the data of a recipe give a run: batches, the adapters' spec, the objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.published import PromptModes
from t2l_jax.lora import Adapter, LoraSpec
from t2l_jax.training.loop import Batches
from t2l_jax.training.objectives import Objective


@dataclass(frozen=True)
class Prepared:
    """The data of a run. Nothing large is in memory until `objective` is called."""

    spec: LoraSpec
    tasks: tuple[str, ...]  # names of the training tasks, in the order of `Condition.task`
    batches: Batches
    mesh: Mesh
    accumulate: int
    objective: Callable[[], Objective]
    prompt: PromptModes
    descriptions: tuple[str, ...]  # the first one of each of them; none, if they have none
    training: str  # how it is trained, a paragraph for the model card
    read: dict[str, Any]  # hashes of what was read, by which a resumed run checks that it is unchanged
    base: DecoderConfig | None = None
    chat_template: str | None = None
    statistics: tuple[Adapter, Adapter] | None = None  # mean and deviation, for standardised outputs
