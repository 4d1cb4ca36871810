"""A hypernetwork that is trained together with a LoRA adapter of its text encoder: text -> z -> adapter, one function.

Axes: T tasks of a batch, S tokens of a description.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from t2l_jax.encoder import Encoder
from t2l_jax.encoder.adapter import with_alpha
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.sentence import SentenceConfig, z_of_rows
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, Variables
from t2l_jax.io.published import ENCODER_FOLDER, ModelConfig
from t2l_jax.lora import Adapter, init_adapter
from t2l_jax.schema import Positive, Width, check_fields
from t2l_jax.training.trainees.base import Extra, Release
from t2l_jax.training.trainees.hypernetworks import TextHypernetwork

ENCODER = "encoder"  # the collection of the frozen encoder's parameters; under "params", its adapter


@dataclass(frozen=True)
class EncoderTraining:
    """Whether the text encoder learns, too."""

    train: Literal["none", "lora"] = "none"
    """none: the text encoder is frozen, and every description is embedded once; lora: a LoRA adapter for it is trained
    in the same step as the hypernetwork, and published with it (only --trainee hypernet, and encoders of the BERT
    family and GTE). It goes on from the adapter that the encoder has, if any."""
    rank: Width = 8
    """Rank of a fresh adapter for the text encoder, for all projections of all layers. An adapter that the encoder has
    keeps its rank, and the projections that it adapts."""
    alpha: Positive = 16.0
    """LoRA alpha of the text encoder's adapter in training: B A is scaled by alpha / rank. An adapter that the encoder
    has is rescaled to it, and changes the encoder as before."""

    def __post_init__(self) -> None:
        check_fields(self, "encoder")


@dataclass(frozen=True)
class JointHypernetwork(TextHypernetwork):
    """Adapters from the tokens of a description.

    Beside the hypernetwork's variables "params" holds the encoder's adapter, and the collection "encoder" its frozen
    parameters: like all constants they are in no checkpoint, and no gradient is computed for them. `join` adds both.
    """

    sentence: SentenceConfig

    reads_tokens = True

    @classmethod
    def conditions(
        cls, descriptions: Sequence[Sequence[str]], places: Sequence[int], z: Sequence[np.ndarray] | None
    ) -> list[Condition]:
        assert z is not None  # the tokens
        return [
            Condition(task=np.full(len(rows), place, np.int32), text=rows)
            for rows, place in zip(z, places, strict=True)
        ]

    def adapters(
        self, variables: Variables, conditions: Condition, key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        own, adapter = _apart(variables)
        z = z_of_rows(self.sentence, variables[ENCODER], jnp.asarray(conditions.text), adapter)
        return super().adapters(own, replace(conditions, z=z, text=None), key)

    def publish(self, folder: Path, variables: Variables, release: Release) -> Path:
        own, adapter = _apart(variables)
        assert isinstance(release.encoder, FlaxEncoder)
        release.encoder.save_adapter(folder / ENCODER_FOLDER, adapter)
        return super().publish(folder, own, release)

    def _model(self, release: Release) -> ModelConfig:
        return replace(super()._model(release), encoder_adapter=True)


def trainable(encoder: Encoder | None, location: str) -> FlaxEncoder:
    """The encoder at a location, as one that can be trained. Raises UserError for one that is not computed in JAX."""
    if not isinstance(encoder, FlaxEncoder):
        raise UserError(
            f"encoder.train: {location} cannot be trained, only an encoder of the BERT family or GTE in a "
            "sentence-transformers folder can: name one with --encoder, or leave it out"
        )
    return encoder


def join(
    trainee: TextHypernetwork, variables: Variables, encoder: FlaxEncoder, training: EncoderTraining, key: PRNGKeyArray
) -> tuple[JointHypernetwork, Variables]:
    """A hypernetwork with these variables and its encoder, to be trained together, and the variables of both."""
    if encoder.lora is not None:
        if not any(np.any(side) for pair in encoder.lora.weights.values() for side in pair.values()):
            raise UserError(
                f"encoder.train: the adapter {encoder.adapter} changes no projection, so nothing of it can be trained: "
                "give the encoder without it"
            )
        adapter = with_alpha(encoder.lora, training.alpha)
    else:
        transformer = encoder.folder.config.transformer
        names = tuple(transformer.projection_widths())
        adapter = init_adapter(key, transformer.lora_spec(names, training.rank, training.alpha))
    both = {**variables, "params": {**variables["params"], ENCODER: adapter}, ENCODER: encoder.params}
    return JointHypernetwork(trainee.config, trainee.spec, encoder.folder.config), both


def _apart(variables: Variables) -> tuple[Variables, Adapter]:
    """The hypernetwork's variables, and the adapter of its encoder."""
    params = {name: value for name, value in variables["params"].items() if name != ENCODER}
    constants = {name: value for name, value in variables.items() if name not in ("params", ENCODER)}
    return {"params": params, **constants}, variables["params"][ENCODER]
