"""An objective that somebody adds: a file with a configuration, and its name in the union."""

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from flax import struct
from tiny_recipe import make_recipe
from tiny_training import LOOP, curves

from t2l_jax import schema
from t2l_jax.io.peft import load_peft
from t2l_jax.lora import Adapter
from t2l_jax.training import LoopConfig
from t2l_jax.training.objectives import FrozenBase, Objective, SftConfig
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.run import run
from t2l_jax.training.trainees import LoraTable


@struct.dataclass
class TowardsZero(Objective):
    """Pulls adapters to zero: the mean of their squares. Needs no base model."""

    strength: float = struct.field(pytree_node=False, default=1.0)

    metrics: ClassVar[tuple[str, ...]] = ("size",)
    best: ClassVar[str] = "size"

    def loss(self, adapter: Adapter, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        size = sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(adapter))
        return self.strength * size, {"size": size}

    def counts(self, batch: Any) -> dict[str, int]:
        return {"adapters": len(batch.condition.task)}


@dataclass(frozen=True)
class TowardsZeroConfig:
    strength: float = 1.0

    kind: ClassVar[type[Objective]] = TowardsZero

    def build(self, base: FrozenBase) -> TowardsZero:
        return TowardsZero(self.strength)


def test_it_is_minimised_logged_and_decides_what_is_kept(tmp_path):
    loop = replace(LOOP, steps=20, validate_every=4)
    trainee = LoraTable(4, tiny_training.SPEC)
    before = trainee.init(jax.random.key(loop.seed))["params"]
    after = tiny_training.run(tmp_path, trainee=trainee, learn=TowardsZero(2.0), loop=loop)["params"]
    sizes = [sum(float(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(table)) for table in (before, after)]
    assert sizes[1] < 0.5 * sizes[0]
    records = curves(tmp_path)
    assert records[0]["loss"] == pytest.approx(2 * records[0]["size"])
    assert "padding" not in records[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["adapters_per_second"] > 0
    looked = [record["seen/size"] for record in records if "seen/size" in record]
    assert looked == sorted(looked, reverse=True)


def test_a_recipe_takes_it_and_reads_no_base_model(tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("t2l_jax.training.objectives.base.load_base", lambda *_: pytest.fail("weights are read"))
    monkeypatch.setitem(Recipe.__annotations__, "objective", SftConfig | TowardsZeroConfig)
    monkeypatch.setattr(schema, "_hints", schema._hints.__wrapped__)
    recipe = make_recipe(tmp_path)
    recipe = replace(recipe, trainee="multitask", objective=TowardsZeroConfig(), loop=LoopConfig(steps=5))
    adapter = load_peft(run(recipe, tmp_path / "run"))
    written = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert written["objective"] == {"strength": 1.0}
    assert np.any(adapter.weights["q_proj"]["a"])
