"""What the studies of reconstruction share: parts of a library, runs on them, and the exact match of what they write.

An answer counts as exact if each of its tokens is the likeliest after the right ones before it: greedy decoding would
give the same answer, at the price of one forward pass.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.batches import packed_tasks
from experiments.tools.study import ADAPTED, records
from t2l_jax.data.batches import collate
from t2l_jax.data.family import build_task
from t2l_jax.data.family.split import combinations
from t2l_jax.data.tasks import Task, evenly
from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.evaluation.bootstrap import interval
from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import load_peft
from t2l_jax.lora import Adapter, stack
from t2l_jax.model import load
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import Sft
from t2l_jax.training.recipe import ReconstructionRecipe
from t2l_jax.training.run import run

NET = HypernetConfig(
    init="reconstruction",
    head_bias="none",
    standardised=True,
    dropout=0.0,
)
RECIPE = ReconstructionRecipe(
    tasks=("family",),
    wordings=8,
    encoder=ADAPTED,
    hypernet=NET,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=1e-3, warmup=0.1, decay="cosine"),
)
EXAMPLES, LENGTH = 8, 256  # test examples of a task that are asked, and the row that holds them
TOGETHER = 8  # tasks


@dataclass(frozen=True)
class Distilled:
    """A finished run on a part of a library."""

    folder: Path
    recipe: ReconstructionRecipe
    seconds: float

    @property
    def relative_error(self) -> float:
        """Of the deltas at the end, for a wording that was not trained on."""
        return next(r for r in reversed(records(self.folder)) if "seen/relative_error" in r)["seen/relative_error"]

    @property
    def parameters(self) -> int:
        """Of the hypernetwork."""
        variables = load(self.folder / "model").variables
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))

    def adapters(self, names: Sequence[str], texts: Mapping[str, Task]) -> Adapter:
        """What it writes for the training tasks `names`, from a held-out wording."""
        model = load(self.folder / "model")
        if self.recipe.trainee == "one-hot":
            return model.adapters(Condition(z=jnp.eye(len(names))))
        return model.generate([texts[name].held_out_wording() for name in names])


def distil(library: Path, names: Sequence[str], folder: Path, recipe: ReconstructionRecipe, steps: int) -> Distilled:
    """Train on a part of a library, or take up the run that is in the folder."""
    which = hashlib.sha256(repr([str(library.resolve()), *names]).encode()).hexdigest()[:12]
    part = folder.parent / f"part-{len(names)}-{which}"
    for name in names:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        if not (part / name).exists():
            (part / name).symlink_to((library / name).resolve())
    loop = LoopConfig(steps=steps, log_every=10, validate_every=steps, checkpoint_every=steps)
    run(replace(recipe, library=str(part), loop=loop), folder)
    together = min(recipe.batch_tasks, len(names))
    rates = [line["adapters_per_second"] for line in records(folder) if "adapters_per_second" in line]
    return Distilled(folder, recipe, sum(together / rate for rate in rates))


def names_of(library: Path, count: int) -> list[str]:
    """`count` of the tasks of a library, evenly spaced."""
    return evenly(sorted(path.name for path in library.iterdir() if path.is_dir()), count)


def family_tasks() -> dict[str, Task]:
    """Name -> task, of the family's training tasks, with the test examples that are asked."""
    return {member.name: build_task(member, 1, EXAMPLES, "train") for member in combinations()["train"]}


def oracles(library: Path, names: Sequence[str]) -> Adapter:
    """The library's own adapters."""
    return stack([load_peft(library / name) for name in names])


@dataclass(frozen=True)
class ExactMatch:
    """Scores adapters on the test examples of tasks, in the base model's instance-only prompt."""

    tasks: Sequence[Task]
    base: str = RECIPE.base

    def of(self, adapters: Adapter | None) -> list[np.ndarray]:
        """The scores of each task's examples, given an adapter for each task (None: the base model's)."""
        return self.measure(adapters)[0]

    def measure(self, adapters: Adapter | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of each task the scores of its examples, and the mean cross-entropy of its answers in nats."""
        found, nats = [], []
        for start in range(0, len(self.tasks), TOGETHER):
            places = np.arange(start, min(start + TOGETHER, len(self.tasks)))
            padded = np.resize(places, TOGETHER)
            batch = collate([self._packed[place] for place in padded], Condition(z=np.zeros((TOGETHER, 1))), LENGTH)
            own = self._nothing if adapters is None else jax.tree.map(jnp.asarray, adapters[padded])
            shares, entropies = map(np.asarray, _measure_each(self._objective, own, batch))
            found += [_marks(share, self._counts[place]) for share, place in zip(shares, places, strict=False)]
            nats += list(entropies[: len(places), None])
        return found, nats

    def table(self, adapters: Adapter | None) -> dict[str, float]:
        """Exact match in percent, and its interval over tasks."""
        return shown(self.of(adapters))

    @cached_property
    def _packed(self) -> list[Any]:
        return packed_tasks([(task.test, ()) for task in self.tasks], self.base, 1, LENGTH)

    @cached_property
    def _counts(self) -> list[int]:
        return [sum(map(len, packed.rows)) for packed in self._packed]

    @cached_property
    def _objective(self) -> Sft:
        config, params = load_base(resolve(self.base))
        return Sft(params, Decoder(config, jnp.float32))

    @property
    def _nothing(self) -> Adapter:
        config: DecoderConfig = self._objective.decoder.config
        spec = config.lora_spec(rank=1)
        return Adapter(jax.tree.map(lambda s: jnp.zeros((TOGETHER, *s)), spec.shapes(), is_leaf=_is_shape), spec)


def shown(scores: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean over tasks in percent, and its interval."""
    return {name: round(100 * value, 1) for name, value in interval(scores)._asdict().items()}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


@jax.jit
def _measure_each(objective: Sft, adapters: Adapter, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Of each task of a batch the share of exact answers and the cross-entropy."""

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = jax.tree.map(lambda leaf: leaf[index][None], batch)
        alone = replace(own, weights=own.weights / jnp.sum(own.weights))
        found = objective.loss(jax.tree.map(lambda leaf: leaf[index][None], adapters), alone, None)[1]
        return found["exact"], found["cross_entropy"]

    return jax.lax.map(one, jnp.arange(TOGETHER))


def _marks(share: float, count: int) -> np.ndarray:
    """As many ones as answers are exact."""
    right = round(float(share) * count)
    assert math.isclose(right, share * count, abs_tol=1e-2), "examples of a task weigh the same"
    return np.repeat([1.0, 0.0], [right, count - right])
