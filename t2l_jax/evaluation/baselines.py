"""Where the columns get their weights: the base model, the hypernetwork, and PEFT folders of trained LoRAs.

The average LoRA is the mean of the oracles' changes to the kernels, B A times the scale, and is added to the kernels of
a copy of the base model. The mean of the As times the mean of the Bs is another matrix, and stacking K oracles into one
adapter of rank K r costs more than the kernel itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.data.tasks import Task
from t2l_jax.errors import UserError
from t2l_jax.evaluation.engine import Source
from t2l_jax.generation import Params
from t2l_jax.io.files import explained
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE, load_peft
from t2l_jax.io.sources import cache_folder
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, dense_delta, stack
from t2l_jax.model import Model


@dataclass(frozen=True)
class Baselines:
    """PEFT folders: one LoRA for all tasks, and by task each one's own and what a one-hot hypernetwork wrote."""

    multitask: Path | None = None
    oracles: dict[str, Path] = field(default_factory=dict)
    one_hot: dict[str, Path] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, dict[str, Path]]:
        """The folders by task, of each column that has such."""
        return {"one-hot": self.one_hot, "oracle": self.oracles}


def find_baselines(multitask: Path | None, oracles: Path | None, one_hot: Path | None = None) -> Baselines:
    """The folders there are. Raises UserError where a named folder holds no PEFT adapter."""
    if multitask is not None and not (multitask / CONFIG_FILE).is_file():
        raise UserError(f"{multitask}: holds no {CONFIG_FILE}: --multitask takes the folder of one PEFT adapter")
    return Baselines(multitask, _by_task(oracles, "--oracles"), _by_task(one_hot, "--one-hot"))


def _by_task(folder: Path | None, option: str) -> dict[str, Path]:
    """The PEFT folders in a folder, by name."""
    if folder is None:
        return {}
    with explained(folder, "read"):
        found = {path.name: path for path in sorted(folder.iterdir()) if (path / CONFIG_FILE).is_file()}
    if not found:
        raise UserError(f"{folder}: holds no folder with a PEFT adapter: {option} takes one for each task's name")
    return found


def hypernet_source(model: Model, llm: LLM, texts: Sequence[str]) -> Source:
    """Adapters by description; the texts are embedded here, all at once."""
    distinct = sorted(set(texts))
    z = model.encoder.embed(distinct, cache_folder() / "embeddings")
    places = {text: place for place, text in enumerate(distinct)}
    return Source(
        f"hypernet {model.fingerprint}",
        llm.params,
        fetch=lambda names: model.adapters(z[np.array([places[name] for name in names])]),
    )


def multitask_source(llm: LLM, folder: Path) -> Source:
    """The same adapter for every row."""
    return Source(f"{llm.source} {digest(folder)}", llm.params, load_peft(folder, llm.config))


def named_source(llm: LLM, folders: dict[str, Path]) -> Source:
    """Adapters by the task's name, read when a batch needs them. Raises UserError where their shapes differ."""

    def fetch(names: Sequence[str]) -> Adapter:
        read = {name: load_peft(folders[name], llm.config) for name in sorted(set(names))}
        first, *others = read.items()
        for name, adapter in others:
            if adapter.spec != first[1].spec:
                raise UserError(f"{folders[name]}: its rank, scale or modules are not those of {folders[first[0]]}")
        return stack([read[name] for name in names])

    every = hashlib.sha256("".join(name + digest(path) for name, path in folders.items()).encode()).hexdigest()
    return Source(f"{llm.source} {every}", llm.params, fetch=fetch)


def average_source(llm: LLM, oracles: dict[str, Path]) -> Source:
    """The base model with the mean of the oracles' changes in its kernels."""
    total: dict[str, np.ndarray] = {}
    for folder in oracles.values():
        for name, delta in dense_delta(load_peft(folder, llm.config)).items():
            total[name] = total.get(name, 0) + np.asarray(delta, np.float32)
    every = hashlib.sha256("".join(digest(path) for path in oracles.values()).encode()).hexdigest()
    return Source(f"average {llm.source} {every}", _added(llm.params, total, len(oracles)))


def training_oracles(oracles: dict[str, Path], training: Sequence[Task]) -> dict[str, Path]:
    """The oracles of training tasks: the average may not know the others."""
    names = {task.name for task in training}
    return {name: path for name, path in oracles.items() if name in names}


def digest(folder: Path) -> str:
    """A hash of a PEFT folder's configuration and weights."""
    found = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with explained(folder / name, "read"):
            found.update((folder / name).read_bytes())
    return found.hexdigest()


def _added(params: Params, total: dict[str, np.ndarray], count: int) -> Params:
    """Parameters with total / count added to the kernels."""
    layers = dict(params["layers"])
    for name, delta in total.items():
        kernel = jax.device_get(layers[name]["kernel"])
        layers[name] = {**layers[name], "kernel": jnp.asarray((kernel + delta / count).astype(kernel.dtype))}
    return {**params, "layers": layers}
