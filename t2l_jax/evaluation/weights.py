"""The weights behind the columns: the base model, hypernetworks, and PEFT folders of trained LoRAs.

The average LoRA is the mean of the oracles' deltas, scale * B A, added to the kernels of a copy of the base model. The
product of the mean A and the mean B would differ from it, and an adapter of rank K r that stacks K oracles would cost
more than the kernel itself.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.encoder import embed_instances
from t2l_jax.errors import UserError
from t2l_jax.evaluation.engine import AdapterKey, Answerer
from t2l_jax.hypernet import Condition
from t2l_jax.io.files import cache_folder, os_errors_explained, read_json
from t2l_jax.io.peft import CONFIG_FILE, digest, load_peft
from t2l_jax.io.published import IDENTITIES_FILE, MODEL_FOLDER, WORDS, Identities
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, add_deltas, dense_delta, stack
from t2l_jax.model import Model, load
from t2l_jax.schema import checked


@dataclass(frozen=True)
class OneHot:
    """A hypernetwork trained on one-hot task identities, and its tasks in the order of the entries of z."""

    model: Model
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Baselines:
    """PEFT folders of the multi-task LoRA and of each task's own LoRA, and hypernetworks that read something else."""

    multitask: Path | None = None
    oracles: dict[str, Path] = field(default_factory=dict)
    one_hot: OneHot | None = None
    instance: Model | None = None

    @property
    def named(self) -> dict[str, Collection[str]]:
        """The tasks that have their own adapter, by column."""
        return {"one-hot": self.one_hot.tasks if self.one_hot else (), "oracle": self.oracles}


def find_baselines(
    multitask: Path | None,
    oracles: Path | None,
    one_hot: Path | None = None,
    instance: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Baselines:
    """The baselines in the given folders, and a hypernetwork at the location `instance`, or in that run folder.

    Raises UserError if a folder does not hold what its option asks for.
    """
    if multitask is not None:
        with os_errors_explained(multitask, "read"):
            found = (multitask / CONFIG_FILE).is_file()
        if not found:
            raise UserError(f"{multitask}: holds no {CONFIG_FILE}: --multitask takes the folder of one PEFT adapter")
    folders: dict[str, Path] = {}
    if oracles is not None:
        with os_errors_explained(oracles, "read"):
            folders = {path.name: path for path in sorted(oracles.iterdir()) if (path / CONFIG_FILE).is_file()}
        if not folders:
            raise UserError(f"{oracles}: holds no folder with a PEFT adapter: --oracles takes a folder of one per task")
    model = None if instance is None else _instance_model(instance, trust_remote_code)
    return Baselines(multitask, folders, None if one_hot is None else _one_hot(one_hot), model)


def _one_hot(folder: Path) -> OneHot:
    path = folder / IDENTITIES_FILE
    tasks = checked(Identities, read_json(path), str(path)).tasks
    model = load(folder / MODEL_FOLDER)
    if model.config.reads != "identity" or model.config.hypernet.task.dim != len(tasks):
        raise UserError(f"{folder}: its model does not read the {len(tasks)} task identities of {IDENTITIES_FILE}")
    return OneHot(model, tasks)


def _instance_model(location: str, trust_remote_code: bool) -> Model:
    inner = Path(location) / MODEL_FOLDER
    model = load(inner if inner.is_dir() else location, trust_remote_code=trust_remote_code)
    if not model.config.reads_instances:
        raise UserError(f"{location}: reads {WORDS[model.config.reads]}: --instance takes one that reads instances")
    return model


def hypernet_answerer(model: Model, llm: LLM, keys: Iterable[AdapterKey]) -> Answerer:
    """Adapters by description, instance or both, written when a batch needs them. All texts are embedded here, at once.

    Raises UserError if the adapters do not fit the base model.
    """
    config = model.config
    llm.config.check_adapter(config.lora)
    pairs = {(key, "") if isinstance(key, str) else key for key in keys}
    descriptions = _embedded(model.encoder.embed, {pair[0] for pair in pairs}) if config.reads_text else None
    embed = partial(embed_instances, model.encoder)
    instances = _embedded(embed, {pair[1] for pair in pairs}) if config.reads_instances else None

    def fetch(keys: Sequence[AdapterKey]) -> Adapter:
        pairs = [(key, "") if isinstance(key, str) else key for key in keys]
        z = None if descriptions is None else descriptions([pair[0] for pair in pairs])
        return model.adapters(Condition(z, None, instances and instances([pair[1] for pair in pairs])))

    return Answerer(f"hypernet {model.fingerprint}", llm.params, fetch=fetch)


def _embedded(
    embed: Callable[[Sequence[str], Path], np.ndarray], texts: Iterable[str]
) -> Callable[[Sequence[str]], np.ndarray]:
    """Embed the texts; return a look-up of their embeddings."""
    distinct = sorted(texts)
    z = embed(distinct, cache_folder() / "embeddings")
    places = {text: place for place, text in enumerate(distinct)}
    return lambda wanted: z[np.array([places[text] for text in wanted])]


def multitask_answerer(llm: LLM, folder: Path) -> Answerer:
    """The same adapter for every row."""
    return Answerer(f"{llm.location} {digest(folder)}", llm.params, load_peft(folder, llm.config))


def one_hot_answerer(llm: LLM, one_hot: OneHot) -> Answerer:
    """Adapters by task name, generated from its identity. Raises UserError if they do not fit the base model."""
    llm.config.check_adapter(one_hot.model.config.lora)
    places = {name: place for place, name in enumerate(one_hot.tasks)}

    def fetch(names: Sequence[str]) -> Adapter:
        z = jax.nn.one_hot(jnp.asarray([places[name] for name in names]), len(places), dtype=jnp.float32)
        return one_hot.model.adapters(Condition(z=z))

    return Answerer(f"one-hot {one_hot.model.fingerprint}", llm.params, fetch=fetch)


def oracle_answerer(llm: LLM, folders: dict[str, Path]) -> Answerer:
    """Adapters by task name, read when a batch needs them. Raises UserError if the specs of a batch differ."""

    def fetch(names: Sequence[str]) -> Adapter:
        read = {name: load_peft(folders[name], llm.config) for name in sorted(set(names))}
        first, *others = read.items()
        for name, adapter in others:
            if adapter.spec != first[1].spec:
                raise UserError(f"{folders[name]}: its rank, scale or modules are not those of {folders[first[0]]}")
        return stack([read[name] for name in names])

    every = hashlib.sha256("".join(name + digest(path) for name, path in folders.items()).encode()).hexdigest()
    return Answerer(f"{llm.location} {every}", llm.params, fetch=fetch)


def average_answerer(llm: LLM, oracles: dict[str, Path]) -> Answerer:
    """The base model with the mean of the oracles' deltas added to its kernels."""
    total: dict[str, np.ndarray] = {}
    for folder in oracles.values():
        for name, delta in dense_delta(load_peft(folder, llm.config)).items():
            total[name] = total.get(name, 0) + np.asarray(delta, np.float32)
    every = hashlib.sha256("".join(digest(path) for path in oracles.values()).encode()).hexdigest()
    mean = {name: delta / len(oracles) for name, delta in total.items()}
    return Answerer(f"average {llm.location} {every}", add_deltas(llm.params, mean))
