"""A published hypernetwork as a user meets it: descriptions in, adapters out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t2l_jax import hypernet
from t2l_jax.decoder.padding import power_of_two
from t2l_jax.encoder import Encoder, load_encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, Variables
from t2l_jax.io import locations
from t2l_jax.io.base import load_config
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE
from t2l_jax.io.published import ENCODER_FOLDER, ModelConfig, load_model
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, LoraSpec

PACKAGED = Path(str(files("t2l_jax"))) / "pretrained"
DEFAULT_MODEL = PACKAGED / "smollm2-family"
ONE_HOT = "one-hot"  # the encoder of a model that was trained without text


@dataclass(frozen=True)
class Model:
    """A trained hypernetwork with its text encoder. The base LLM's weights are loaded by `load_base` only."""

    config: ModelConfig
    variables: Variables = field(repr=False)
    trust_remote_code: bool = False  # the text encoder's; consent is given where a model is loaded, never in its files
    encoder_adapter: Path | None = None  # the folder of its text encoder's adapter, if it has one

    @cached_property
    def encoder(self) -> Encoder:
        """The text encoder, loaded at first use. Raises UserError where the hypernetwork reads another width of z."""
        if self.config.encoder == ONE_HOT:
            raise UserError(
                "this hypernetwork was trained from one-hot task identities and cannot be asked with text: give a "
                "model that was trained from descriptions, or its run folder to t2l evaluate --one-hot"
            )
        width = self.config.hypernet.task.dim
        encoder = load_encoder(
            self.config.encoder, adapter=self.encoder_adapter, trust_remote_code=self.trust_remote_code
        )
        if encoder.dim != width:
            raise UserError(
                f"{self.config.encoder}: this text encoder's width is {encoder.dim}, the hypernetwork reads {width}: "
                "name the encoder that it was trained with in its config.json"
            )
        return encoder

    @cached_property
    def fingerprint(self) -> str:
        """A hash of configuration and weights, the encoder's adapter among them: equal ones write equal adapters."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        if self.encoder_adapter is not None:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                digest.update((self.encoder_adapter / name).read_bytes())
        return digest.hexdigest()

    def generate(self, descriptions: Sequence[str]) -> Adapter:
        """One adapter per description, along the leading axis. Raises UserError for a text that cannot be embedded."""
        return self.adapters(self.encoder.embed(descriptions))

    def adapters(self, z: Float[Array | np.ndarray, "T z"]) -> Adapter:
        """Adapters [T] of task embeddings. T is padded to a power of two, so that compilation happens rarely."""
        count = len(z)
        padded = jnp.pad(jnp.asarray(z), ((0, power_of_two(count) - count), (0, 0)))
        return _generate(self.config.hypernet, self.config.lora, self.variables, padded)[:count]

    def load_base(self, dtype: Any = jnp.float32) -> LLM:
        """The frozen base LLM that the adapters are for. Raises UserError where they do not fit it."""
        load_config(self.config.base).check_adapter(self.config.lora)
        return LLM.load(self.config.base, dtype=dtype)


def load(source: str | Path | None = None, *, trust_remote_code: bool = False) -> Model:
    """A published hypernetwork: a packaged one by its name, a folder, `hf:org/name` or `pypi:package==version`.

    The default is smollm2-family of the package; an existing folder of that name goes before it. Python code that
    comes with its text encoder runs only with `trust_remote_code`. Raises UserError where there is no such model, or
    where its files are damaged.
    """
    folder = model_folder(str(source or DEFAULT_MODEL))
    config, variables = load_model(folder)
    return Model(config, variables, trust_remote_code, folder / ENCODER_FOLDER if config.encoder_adapter else None)


@partial(jax.jit, static_argnums=(0, 1))
def _generate(config: HypernetConfig, spec: LoraSpec, variables: Variables, z: Float[Array, "T z"]) -> Adapter:
    return hypernet.generate(config, spec, variables, z)


def model_folder(source: str) -> Path:
    """Where a published hypernetwork lies: a packaged one by its name, any other as `locations.resolve` finds it."""
    named = {Path(path).name: Path(path) for path in packaged()}
    return named[source] if source in named and not Path(source).exists() else locations.resolve(source)


def packaged() -> list[str]:
    """The hypernetworks that come with the package, as paths."""
    return sorted(str(path.parent) for path in PACKAGED.glob("*/config.json"))


def describe(source: str) -> str:
    """What a published hypernetwork is, in a few lines."""
    model = load(source)
    config, count = model.config, sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    return f"""{source}
  base model    {config.base_name} ({config.base})
  text encoder  {config.encoder}{" with an adapter" * config.encoder_adapter}, width {config.hypernet.task.dim}
  hypernetwork  {config.hypernet.head}, {count / 1e6:.1f} M parameters
  adapter       {", ".join(config.lora.names)}; rank {config.lora.rank}, scale {config.lora.scale:.3f}, \
{config.lora.size / 1e6:.2f} M parameters
  prompt        {config.prompt}"""
