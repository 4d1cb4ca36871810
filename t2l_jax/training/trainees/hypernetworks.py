"""Hypernetworks conditioned on a description, or on a one-hot task identity.

Axes: T tasks of a batch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from t2l_jax import hypernet
from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, TaskEncoderConfig, Variables
from t2l_jax.io.files import atomic_write
from t2l_jax.io.published import (
    ENCODER_FOLDER,
    IDENTITIES_FILE,
    MODEL_FOLDER,
    ModelConfig,
    Reads,
    model_card,
    save_model,
)
from t2l_jax.lora import Adapter, LoraSpec
from t2l_jax.training import initial
from t2l_jax.training.trainees.base import Extra, Release, Trainee

# (reads descriptions, reads instances) -> what a published model is said to read.
READS: dict[tuple[bool, bool], Reads] = {
    (True, False): "description",
    (False, False): "identity",
    (False, True): "instance",
    (True, True): "both",
}


@dataclass(frozen=True)
class TextHypernetwork(Trainee):
    """The hypernetwork of the paper: adapters from descriptions."""

    config: HypernetConfig
    spec: LoraSpec

    reads_text = True
    takes_new_tasks = True
    takes_offset = True
    reconstructs = True
    begins_from = "a published hypernetwork"

    @classmethod
    def form(cls, net: HypernetConfig, location: str) -> HypernetConfig:
        return initial.published_form(location, net)

    @classmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "TextHypernetwork":
        """Raises UserError if the recipe sets a width of z other than the encoder's."""
        width = num_tasks if dim is None else dim
        if net.task.dim not in (TaskEncoderConfig().dim, width):
            raise UserError(f"hypernet.task.dim is {net.task.dim}, the width of z is {width}: leave it out")
        return cls(replace(net, task=replace(net.task, dim=width)), spec)

    def init(self, key: PRNGKeyArray) -> Variables:
        return hypernet.init(key, self.config, self.spec)

    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        net: Any = hypernet.Hypernet(self.config, self.spec, train=key is not None)
        count = len(jax.tree.leaves(conditions)[0])
        keys = jax.random.split(jax.random.key(0) if key is None else key, count)

        def one(condition: Condition, key: PRNGKeyArray) -> tuple[Adapter, dict]:
            return net.apply(variables, condition, rngs={"dropout": key}, mutable=["losses"])

        adapters, sown = jax.vmap(one)(conditions, keys)
        return adapters, sum((jnp.mean(leaf) for leaf in jax.tree.leaves(sown)), start=jnp.zeros((), jnp.float32))

    def begin_from(self, location: str, release: Release, base: DecoderConfig | None) -> Variables:
        adapter = None if release.encoder is None else release.encoder.adapter
        return initial.published_weights(location, self._model(release), adapter)

    @classmethod
    def chat_template(cls, location: str) -> str | None:
        return initial.published_template(location)

    def begin_as(self, offset: Path, fresh: Variables, base: DecoderConfig | None) -> Variables:
        return initial.with_offset(offset, self.config, self.spec, fresh, base)

    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        model = self._model(release)
        adapter = folder / ENCODER_FOLDER if model.encoder_adapter else None  # the run's own copy
        card = model_card(model, release.training)
        save_model(
            folder / MODEL_FOLDER,
            model,
            variables,
            card,
            encoder_adapter=adapter,
            chat_template=release.chat_template,
            descriptions=release.descriptions,
        )
        return folder / MODEL_FOLDER

    def _model(self, release: Release) -> ModelConfig:
        encoder = release.encoder
        return ModelConfig(
            self.config,
            self.spec,
            None if encoder is None else encoder.name,
            release.base,
            release.base_name,
            release.prompt,
            encoder is not None and encoder.adapter is not None,
            reads=READS[self.reads_text, self.reads_instances],
        )


@dataclass(frozen=True)
class OneHotHypernetwork(TextHypernetwork):
    """The hypernetwork with a task's one-hot identity as z instead of text; limited to the tasks of its run."""

    reads_text = False
    takes_new_tasks = False
    one_per_task = True
    begins_from = ""

    @classmethod
    def make(cls, net: HypernetConfig, spec: LoraSpec, dim: int | None, num_tasks: int) -> "TextHypernetwork":
        """Raises UserError unless the task encoder is linear."""
        if net.task.kind != "linear":
            raise UserError(f"hypernet.task.kind is {net.task.kind}: a one-hot task identity is read by linear only")
        return super().make(net, spec, None, num_tasks)

    @classmethod
    def conditions(
        cls, descriptions: Sequence[Sequence[str]], places: Sequence[int], z: Sequence[np.ndarray] | None
    ) -> list[Condition]:
        return [Condition(task=np.full(1, place, np.int32)) for place in places]

    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        z = jax.nn.one_hot(conditions.task, self.config.task.dim)
        return super().adapters(variables, replace(conditions, z=z, task=None), key)

    def begin_from(self, location: str, release: Release, base: DecoderConfig | None) -> Variables:
        return Trainee.begin_from(self, location, release, base)

    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        atomic_write(folder / IDENTITIES_FILE, json.dumps({"tasks": list(release.tasks)}, indent=2) + "\n")
        return super().publish(folder, variables, release)
