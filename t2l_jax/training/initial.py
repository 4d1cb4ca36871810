"""Where a run begins that does not begin fresh: from a published hypernetwork, or from an adapter in a PEFT folder."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax import hypernet
from t2l_jax.decoder import DecoderConfig
from t2l_jax.encoder import SHORT_NAMES
from t2l_jax.encoder.adapter import same_adapter
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import load_peft
from t2l_jax.io.published import ENCODER_FOLDER, ModelConfig, load_model
from t2l_jax.lora import Adapter, LoraSpec, stack
from t2l_jax.model import model_folder
from t2l_jax.training.baselines import ProducerName


def starting_weights(
    start: str | None, producer: ProducerName, model: ModelConfig, encoder_adapter: Path | None, base: DecoderConfig
) -> Variables | None:
    """The variables of `start` for a run that will publish `model`; None where there is no start.

    Raises UserError that names the field where they are of another shape.
    """
    if start is None:
        return None
    if producer == "hypernet":
        return _hypernetwork(start, model, encoder_adapter)
    return {"params": stack([_lora(start, model.lora, base)])}


def _hypernetwork(start: str, model: ModelConfig, encoder_adapter: Path | None) -> Variables:
    """A published hypernetwork's variables; warnings where its encoder, base model or adapters' scale is another."""
    folder = model_folder(start)
    found, variables = load_model(folder)
    same = (
        SHORT_NAMES.get(found.encoder, found.encoder) == model.encoder
        and found.encoder_adapter == model.encoder_adapter
    )
    if not same or (encoder_adapter is not None and not same_adapter(encoder_adapter, folder / ENCODER_FOLDER)):
        warnings.warn(
            f"{start} was trained with another text encoder, {found.encoder}"
            f"{' with an adapter' * found.encoder_adapter}: what z means is to be learned anew",
            stacklevel=4,
        )
    if found.base != model.base:
        warnings.warn(f"{start} was trained for another base model, {found.base}", stacklevel=4)
    _refuse_other(start, "hypernet", replace(found.hypernet, dropout=model.hypernet.dropout), model.hypernet)
    _refuse_other(start, "lora", _scaled_like(found.lora, model.lora), model.lora)
    if (ratio := model.lora.scale / found.lora.scale) != 1:
        warnings.warn(
            f"{start} writes adapters of scale {found.lora.scale:.4g}: with lora.alpha {model.lora.alpha:g} they begin "
            f"{ratio:.3g} times as strong",
            stacklevel=4,
        )
    return variables


def begin_as(offset: str, model: ModelConfig, fresh: Variables, base: DecoderConfig) -> Variables:
    """Fresh variables with an offset by which the hypernetwork, whatever it reads, writes the PEFT folder's adapter.

    The offset that is added is that adapter less what the hypernetwork writes without one: for SFT a fresh LoRA's A.
    """
    net = replace(model.hypernet, offset="none")
    written = hypernet.generate(net, model.lora, fresh, jnp.zeros((1, net.task.dim)))[0]
    added = jax.tree.map(jnp.subtract, _lora(offset, model.lora, base), written)
    place = "params" if model.hypernet.offset == "learned" else "constants"
    return {**fresh, place: {**fresh[place], "offset": added}}


def _lora(start: str, spec: LoraSpec, base: DecoderConfig) -> Adapter:
    """A PEFT folder's adapter as one of `spec`: where its scale is another, B makes up for it."""
    adapter = load_peft(resolve(start), base)
    there = adapter.spec
    _refuse_other(start, "lora", _scaled_like(there, spec), spec)
    scale = there.scale / spec.scale
    return Adapter({name: {"a": pair["a"], "b": pair["b"] * scale} for name, pair in adapter.weights.items()}, spec)


def _scaled_like(spec: LoraSpec, other: LoraSpec) -> LoraSpec:
    return replace(spec, alpha=other.alpha, rslora=other.rslora)


def _refuse_other(start: str, name: str, there: object, here: object) -> None:
    """Raise UserError with the first field in which two configurations differ."""
    for key, value in vars(here).items():
        if (found := getattr(there, key)) != value:
            raise UserError(f"{start}: {name}.{key} is {found}, the recipe's is {value}: make them equal")


def weights_digest(variables: Variables) -> str:
    """A hash of weights: a run that goes on from others would mix the two."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
