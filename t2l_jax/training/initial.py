"""Initial variables of a run from trained weights: a published hypernetwork or an adapter."""

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.decoder import DecoderConfig
from t2l_jax.encoder import SHORT_NAMES
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, Variables, write_adapters
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import digest, load_peft
from t2l_jax.io.published import (
    ENCODER_FOLDER,
    WORDS,
    ModelConfig,
    load_model,
    load_template,
    model_folder,
    read_config,
)
from t2l_jax.lora import Adapter, LoraSpec

FORM = ("init", "head_bias", "standardised", "linear_init", "embedding_init")


def published_weights(location: str, model: ModelConfig, encoder_adapter: Path | None) -> Variables:
    """The variables of a published hypernetwork, to initialise a run with configuration `model`.

    Warns if text encoder, base model or adapter scale differ. Raises UserError that names the first field by which
    architecture or adapter spec differ.
    """
    folder = model_folder(location)
    there, variables = load_model(folder)
    if there.reads != model.reads:
        _explain_reads(location, there, model)
    same = (
        there.encoder is not None
        and SHORT_NAMES.get(there.encoder, there.encoder) == model.encoder
        and there.encoder_adapter == model.encoder_adapter
    )
    if not same or (encoder_adapter is not None and digest(encoder_adapter) != digest(folder / ENCODER_FOLDER)):
        warnings.warn(
            f"{location} was trained with another text encoder, {there.encoder or 'none'}"
            f"{' with an adapter' * there.encoder_adapter}: what z means must be learned anew",
            stacklevel=4,
        )
    if there.base != model.base:
        warnings.warn(f"{location} was trained for another base model, {there.base}", stacklevel=4)
    _refuse_other(location, "hypernet", replace(there.hypernet, dropout=model.hypernet.dropout), model.hypernet)
    _refuse_other(location, "lora", _scaled_like(there.lora, model.lora), model.lora)
    if (ratio := model.lora.scale / there.lora.scale) != 1:
        warnings.warn(
            f"{location} writes adapters of scale {there.lora.scale:.4g}: with lora.alpha {model.lora.alpha:g} they "
            f"begin {ratio:.3g} times as strong",
            stacklevel=4,
        )
    return variables


def _explain_reads(location: str, there: ModelConfig, here: ModelConfig) -> None:
    """Warn that two models read different things. Raises UserError if their task encoders differ in width, too."""
    text = f"{location} reads {WORDS[there.reads]}, the recipe's trainee {WORDS[here.reads]}"
    if there.hypernet.task.dim != here.hypernet.task.dim:
        widths = f"embeddings {there.hypernet.task.dim} and {here.hypernet.task.dim} wide"
        raise UserError(f"{text}: {widths}; begin from a model of the same kind, or choose another --trainee")
    warnings.warn(f"{text}: what they mean must be learned anew", stacklevel=5)


def published_template(location: str) -> str | None:
    """The chat template of a published hypernetwork; None if its prompts are the base model's own."""
    folder = model_folder(location)
    return load_template(folder, read_config(folder))


def published_form(location: str, config: HypernetConfig) -> HypernetConfig:
    """The configuration with the form of a published hypernetwork's outputs, which does not change its shape.

    A run may go on from a model that was trained for another objective: its head keeps its bias and its constants.
    """
    there = read_config(model_folder(location)).hypernet
    return replace(config, **{name: getattr(there, name) for name in FORM})


def with_statistics(fresh: Variables, mean: Adapter, std: Adapter) -> Variables:
    """Fresh variables of a hypernetwork with standardised outputs, for a library of this mean and deviation."""
    return {**fresh, "constants": {**fresh["constants"], "mean": mean, "std": std}}


def with_offset(
    offset: Path, config: HypernetConfig, spec: LoraSpec, fresh: Variables, base: DecoderConfig | None
) -> Variables:
    """Fresh variables with an offset such that the hypernetwork outputs the PEFT folder's adapter for any input.

    The offset is that adapter minus the output of the fresh hypernetwork (with init sft the A of a fresh LoRA, B = 0).
    """
    net = replace(config, offset="none")
    written = write_adapters(net, spec, fresh, Condition(z=jnp.zeros((1, net.task.dim))))[0]
    added = jax.tree.map(jnp.subtract, adapter_at(offset, spec, base), written)
    place = "params" if config.offset == "learned" else "constants"
    return {**fresh, place: {**fresh[place], "offset": added}}


def adapter_at(location: str | Path, spec: LoraSpec, base: DecoderConfig | None) -> Adapter:
    """A PEFT folder's adapter converted to `spec`; B absorbs a difference in scale."""
    adapter = load_peft(resolve(location).path, base)
    there = adapter.spec
    _refuse_other(location, "lora", _scaled_like(there, spec), spec)
    scale = there.scale / spec.scale
    return Adapter({name: {"a": pair["a"], "b": pair["b"] * scale} for name, pair in adapter.weights.items()}, spec)


def weights_digest(variables: Variables, chat_template: str | None = None) -> str:
    """A hash of weights and chat template, by which a resumed run checks that it started from the same ones."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    digest.update((chat_template or "").encode())
    return digest.hexdigest()


def _scaled_like(spec: LoraSpec, other: LoraSpec) -> LoraSpec:
    return replace(spec, alpha=other.alpha, rslora=other.rslora)


def _refuse_other(location: str | Path, name: str, there: object, here: object) -> None:
    """Raise UserError for the first field in which two configurations differ."""
    for key, value in vars(here).items():
        if (other := getattr(there, key)) != value:
            raise UserError(f"{location}: {name}.{key} is {other}, the recipe's is {value}: make them equal")
