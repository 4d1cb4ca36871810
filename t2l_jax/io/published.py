"""A published hypernetwork: a folder of `config.json`, `model.safetensors` and a model card (`README.md`).

If its text encoder has a LoRA adapter, the subfolder `encoder` holds it, and the config says so; likewise the file
`chat_template.jinja`, if it was trained with prompts that the base model's own chat template does not write.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from huggingface_hub import EvalResult
from pydantic import Strict
from safetensors.numpy import save

from t2l_jax import hypernet
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, Variables
from t2l_jax.io import descriptions as descriptions_file
from t2l_jax.io.descriptions import Descriptions
from t2l_jax.io.encoder_adapter import adapted, copy_adapter, is_adapter
from t2l_jax.io.files import atomic_folder, open_file, os_errors_explained, read_file, read_json
from t2l_jax.io.locations import resolve
from t2l_jax.io.model_card import PAPER, front_matter, known_facts, read_results
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE
from t2l_jax.io.safetensors_header import load_float32
from t2l_jax.io.tensor import all_finite
from t2l_jax.lora import Adapter, LoraModule, LoraSpec
from t2l_jax.schema import Count, Schema, Texts, checked

PRETRAINED = Path(str(files("t2l_jax"))) / "pretrained"
DEFAULT_MODEL = "smollm2-family"
MODEL_FOLDER = "model"  # in a run folder
IDENTITIES_FILE = "tasks.json"  # in a one-hot run: the tasks in the order of the entries of z
ENCODER_FOLDER = "encoder"  # in a published folder: the text encoder's adapter
TEMPLATE_FILE = "chat_template.jinja"  # in a published folder
MAX_TEXT = 1 << 20  # bytes of a chat template or a model card
ADAPTERS = ("offset", "mean", "std")  # variables of the hypernetwork that are adapters
STATISTICS = ("constants/mean/", "constants/std/")  # prefixes of the tensors of standardised outputs
PromptModes = Literal["instance", "instruction", "definition", "both"]  # both: instance, and one of the others
Reads = Literal["description", "identity", "instance", "both"]
WORDS: dict[Reads, str] = {  # what a model reads, in prose
    "description": "descriptions",
    "identity": "one-hot task identities",
    "instance": "instances",
    "both": "descriptions and instances",
}

# What a model card says of each: the source of an adapter, and a line of code.
CARDS: dict[Reads, tuple[str, str]] = {
    "description": ("one sentence that describes a task", 'adapters = model.generate(["Answer with the last word."])'),
    "identity": ("the one-hot identity of a task", "# t2l evaluate --one-hot takes its run folder"),
    "instance": ("the input of an example", 'adapters = model.generate(instances=["red green blue"])'),
    "both": (
        "a task's description and the input of an example",
        'adapters = model.generate(["Answer with the last word."], ["red green blue"])',
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a trained hypernetwork: architecture, adapter spec, text encoder and base model."""

    hypernet: HypernetConfig
    lora: LoraSpec
    encoder: str | None  # location of the text encoder; None if it reads no text
    base: str  # location of the base LLM
    base_name: str  # public name of the base LLM, written into exported adapters
    prompt: PromptModes = "instance"  # the prompt modes it was trained with
    encoder_adapter: bool = False  # whether the text encoder has an adapter, in ENCODER_FOLDER
    chat_template: bool = False  # whether it has a chat template in place of the base model's, in TEMPLATE_FILE
    reads: Reads = "description"  # what its adapters are conditioned on

    @property
    def reads_text(self) -> bool:
        """Whether it reads descriptions."""
        return self.reads in ("description", "both")

    @property
    def reads_instances(self) -> bool:
        """Whether it reads instances, and so writes an adapter for each example."""
        return self.reads in ("instance", "both")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lora": self.lora.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str) -> "ModelConfig":
        """The inverse of `to_dict`. Raises UserError, starting with `where`, for anything else."""
        widths = checked(_Widths, data, where).lora.modules
        modules = tuple(LoraModule(name, *pair) for name, pair in widths.items())
        config = checked(cls, {**data, "lora": {**data["lora"], "modules": modules}}, where)
        if (config.reads == "identity") != (config.encoder is None):
            fix = 'name its text encoder, or write "reads": "identity" if it reads one-hot task identities'
            if config.encoder is not None:
                fix = "task identities have no text encoder: make it null"
            raise UserError(f"{where}: reads is {config.reads}, encoder {config.encoder or 'null'}: {fix}")
        return config


class Identities(Schema):
    """The layout of IDENTITIES_FILE."""

    tasks: Texts


class _Modules(Schema):
    modules: dict[str, Annotated[tuple[Count, Count], Strict(False)]]


class _Widths(Schema):
    lora: _Modules


def save_model(
    folder: Path,
    config: ModelConfig,
    variables: Variables,
    card: str,
    dtype: Any = np.float16,
    encoder_adapter: Path | None = None,
    chat_template: str | None = None,
    descriptions: Descriptions = descriptions_file.NONE,
) -> None:
    """Write a published folder atomically, with weights in `dtype`.

    Mean and deviation of standardised outputs are always float32: a small deviation would be zero in halves.
    `encoder_adapter` is the folder of the text encoder's adapter, which is copied into the published folder;
    `chat_template` is the template to write prompts with, if it is not the base model's own; `descriptions` are those
    of the training tasks.

    Raises UserError if a weight is not finite in `dtype`.
    """
    config = replace(config, encoder_adapter=encoder_adapter is not None, chat_template=chat_template is not None)
    flat = tensors_of(variables)
    with np.errstate(over="ignore"):
        tensors = {
            name: np.ascontiguousarray(leaf, np.float32 if name.startswith(STATISTICS) else dtype)
            for name, leaf in flat.items()
        }
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise UserError(
                f"{folder}: the weights {name} are not finite, or too large for {tensor.dtype}: not written"
            )
    with atomic_folder(folder, replace=True) as partial:
        (partial / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        (partial / "model.safetensors").write_bytes(save(tensors))
        (partial / "README.md").write_text(card, encoding="utf-8")
        if encoder_adapter is not None:
            copy_adapter(encoder_adapter, partial / ENCODER_FOLDER)
        if chat_template is not None:
            (partial / TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
        descriptions_file.write(partial, descriptions)


def lossless_dtype(variables: Variables) -> type[np.floating]:
    """The type to save weights in that changes none: float16 for those of a file of halves, or else float32."""
    leaves = [np.asarray(leaf) for name, leaf in tensors_of(variables).items() if not name.startswith(STATISTICS)]
    with np.errstate(over="ignore"):
        halves = all((leaf.astype(np.float16) == leaf.astype(np.float32)).all() for leaf in leaves)
    return np.float16 if halves else np.float32


def fingerprint(config: ModelConfig, variables: Variables, encoder_adapter: Path | None, template: str | None) -> str:
    """A hash of a hypernetwork; models with equal ones write equal adapters, and equal prompts for the base model."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    if encoder_adapter is not None:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            digest.update(read_file(encoder_adapter / name))
    digest.update((template or "").encode())
    return digest.hexdigest()


def model_card(
    config: ModelConfig, training: str, facts: Mapping[str, str] | None = None, results: Sequence[EvalResult] = ()
) -> str:
    """The README of a published folder; `training` is a paragraph about how it was trained.

    `facts` are fields of its YAML that are known of this model alone, such as the license.
    """
    encoder = "none, one-hot task identities" if config.encoder is None else f"`{config.encoder}`"
    source, code = CARDS[config.reads]
    adapter = f" with the adapter in {ENCODER_FOLDER}/" * config.encoder_adapter
    return f"""{front_matter(config.base_name, facts, results)}\
# A Text-to-LoRA hypernetwork for {config.base_name}

A hypernetwork as of [Text-to-LoRA]({PAPER}).
From {source} it writes a LoRA adapter (rank {config.lora.rank}, \
{", ".join(config.lora.names)}) for the base model
`{config.base}`. Text encoder: {encoder}{adapter}.
Architecture: {config.hypernet.head}. Prompt mode: {config.prompt}.

{training}

    import t2l_jax
    model = t2l_jax.load("this folder")  # or "hf:org/name"
    {code}
"""


def publish(
    folder: Path,
    out: Path,
    *,
    encoder: Path | None = None,
    alpha: float | None = None,
    results: Path | None = None,
    descriptions: bool = True,
) -> ModelConfig:
    """Copy a trained model to a new folder, optionally with another text encoder adapter or another LoRA alpha.

    `folder` is a published folder or a run folder, `encoder` a PEFT folder; weights are copied unchanged. Alpha scales
    the generated adapters. `results` is the folder of an evaluation of what is published, for its card. Without
    `descriptions`, those of the training tasks stay out. Returns the new configuration. Raises UserError if the model
    is damaged, if `encoder` adapts another text encoder than the model's, if `results` are another model's, or if `out`
    exists.
    """
    folder = folder / MODEL_FOLDER if (folder / MODEL_FOLDER / "config.json").exists() else folder
    config, variables = load_model(folder)
    changed = config if alpha is None else replace(config, lora=replace(config.lora, alpha=alpha))
    own = folder / ENCODER_FOLDER if config.encoder_adapter else None
    if encoder is not None:
        if config.reads == "identity":
            raise UserError(f"{folder}: reads one-hot task identities, so no text encoder: leave --encoder out")
        if adapted(encoder) != config.encoder:
            raise UserError(f"{encoder}: adapts {adapted(encoder)}, the model reads {config.encoder}: give another one")
        changed, own = replace(changed, encoder_adapter=True), encoder
    card = load_card(folder) or ""
    weights, template = read_file(folder / "model.safetensors"), load_template(folder, config)
    if results is not None or encoder is not None or changed != config or not card.startswith("---"):
        training = [part for part in card.split("\n\n") if part.startswith(("Trained", "Published"))]
        if changed.lora.alpha != config.lora.alpha:
            training.append(f"Published with alpha {alpha:g}; before it was {config.lora.alpha:g}.")
        scores = [] if results is None else read_results(results, fingerprint(changed, variables, own, template))
        card = model_card(changed, "\n\n".join(training), known_facts(card), scores)
    with atomic_folder(out) as partial:
        (partial / "config.json").write_text(json.dumps(changed.to_dict(), indent=2) + "\n")
        (partial / "model.safetensors").write_bytes(weights)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if own is not None:
            copy_adapter(own, partial / ENCODER_FOLDER)
        if template is not None:
            (partial / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        if descriptions:
            descriptions_file.write(partial, descriptions_file.read(folder))
    return changed


def load_model(folder: Path) -> tuple[ModelConfig, Variables]:
    """Read a folder written by `save_model`, with weights in float32.

    Raises UserError if a file is missing or damaged, or if a tensor's shape does not match the config.
    """
    config = read_config(folder)
    shapes = tensor_shapes(config)
    own = folder / ENCODER_FOLDER
    if config.encoder_adapter and not (is_adapter(own) and (own / WEIGHTS_FILE).is_file()):
        raise UserError(f"{own}: the text encoder's adapter is missing: fetch the whole folder again")
    path = folder / "model.safetensors"
    tensors = load_float32(path)
    for name in sorted(shapes.keys() | tensors.keys()):
        shape = tensors[name].shape if name in tensors else "missing"
        if shapes.get(name) != shape:
            raise UserError(f"{path}: tensor {name} is {shape}, its config.json asks for {shapes.get(name, 'none')}")
    return config, with_tensors(tensors, config.lora)


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a published folder. Raises UserError if it is missing or damaged."""
    path = folder / "config.json"
    if not path.is_file() and (folder / MODEL_FOLDER / "config.json").exists():
        raise UserError(f"{folder}: a run folder, no model: give {folder / MODEL_FOLDER}")
    data = read_json(path)
    if "hypernet" not in data:
        raise UserError(f"{path}: not the config of a t2l_jax model; give a folder that t2l train wrote")
    return ModelConfig.from_dict(data, str(path))


def load_card(folder: Path) -> str | None:
    """The model card of a published folder, if it has one that can be one: bytes that are no UTF-8 are replaced."""
    path = folder / "README.md"
    with suppress(UserError), os_errors_explained(path, "read"), open_file(path) as file:
        return file.read(MAX_TEXT).decode(errors="replace")
    return None


def load_template(folder: Path, config: ModelConfig) -> str | None:
    """The chat template of a published folder with this configuration; None if prompts are the base model's own."""
    if not config.chat_template:
        return None
    path = folder / TEMPLATE_FILE
    with os_errors_explained(path, "read"), open_file(path) as file:
        text = file.read(MAX_TEXT + 1)
    try:
        if len(text) <= MAX_TEXT:
            return text.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): fetch the whole folder again") from error
    raise UserError(f"{path}: has more than {MAX_TEXT:,} bytes, too much for a chat template")


def model_folder(location: str | Path | None) -> Path:
    """The folder of a published hypernetwork, given a bundled one's name (default: DEFAULT_MODEL) or a location."""
    location = location or DEFAULT_MODEL
    named = PRETRAINED / str(location)
    return named if named in pretrained_models() and not Path(location).exists() else resolve(location).path


def pretrained_models() -> list[Path]:
    """The folders of the bundled hypernetworks."""
    return sorted(path.parent for path in PRETRAINED.glob("*/config.json"))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model."""
    wanted = jax.eval_shape(lambda: hypernet.init(jax.random.key(0), config.hypernet, config.lora))
    return {name: leaf.shape for name, leaf in tensors_of(wanted).items()}


def tensors_of(variables: Variables) -> dict[str, Any]:
    """The leaves of the variables by their names in a file, `params/query/depth/embedding`."""
    plain = {
        group: {name: leaf.weights if isinstance(leaf, Adapter) else leaf for name, leaf in members.items()}
        for group, members in variables.items()
    }
    return flatten_dict(plain, sep="/")


def with_tensors(tensors: Mapping[str, np.ndarray], spec: LoraSpec) -> Variables:
    """The inverse of `tensors_of`."""
    tree = unflatten_dict({name: jnp.asarray(tensor) for name, tensor in tensors.items()}, sep="/")
    return {
        group: {name: Adapter(leaf, spec) if name in ADAPTERS else leaf for name, leaf in members.items()}
        for group, members in tree.items()
    }
