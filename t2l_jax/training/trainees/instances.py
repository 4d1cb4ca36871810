"""Hypernetworks that write an adapter for each example: Hyperdecoders (Ivison and Peters, arXiv 2203.08304).

The condition holds the embedding of the example's input, by the text encoder that embeds descriptions. The leading axis
of a batch is the example; see data/batches.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.lora import LoraSpec
from t2l_jax.training.trainees.hypernetworks import TextHypernetwork


@dataclass(frozen=True)
class InstanceTextHypernetwork(TextHypernetwork):
    """Adapters from the description and the instance: the task encoder reads one embedding after the other."""

    reads_instances = True
    reconstructs = False

    @classmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "TextHypernetwork":
        """Raises UserError if the recipe sets another width than the two embeddings'."""
        return super().make(net, spec, None if dim is None else 2 * dim, num_tasks)


@dataclass(frozen=True)
class InstanceHypernetwork(TextHypernetwork):
    """Adapters from the instance alone."""

    reads_text = False
    reads_instances = True
    reconstructs = False

    @classmethod
    def conditions(
        cls, descriptions: Sequence[Sequence[str]], places: Sequence[int], z: Sequence[np.ndarray] | None
    ) -> list[Condition]:
        """What is known before an example is drawn: its task."""
        return [Condition(task=np.full(1, place, np.int32)) for place in places]
