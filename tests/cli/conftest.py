"""A folder that commands run in, with models, adapters and tasks, whole and damaged."""

from pathlib import Path

import jax
import pytest
from tiny_published import SPEC, HashEncoder, reading, save_base, save_published, tiny_config

from t2l_jax import encoder as encoder_module
from t2l_jax import model as model_module
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import LoraModule, LoraSpec, init_adapter
from t2l_jax.training import run as run_module

EXPERIMENT = """
from t2l_jax.data.batches import BatchConfig
from t2l_jax.training.recipe import LoraConfig, Recipe
from t2l_jax.training import LoopConfig
RECIPE = Recipe(batch=BatchConfig(tasks=2), lora=LoraConfig(rank=3), loop=LoopConfig(steps=7))
"""


@pytest.fixture(autouse=True)
def _encoder(monkeypatch):
    for module in (model_module, encoder_module, run_module):
        monkeypatch.setattr(module, "load_encoder", lambda source, **_: HashEncoder())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of a base, a model for it, damaged models, and adapters."""
    folder = tmp_path_factory.mktemp("models")
    save_published(folder / "good", tiny_config(save_base(folder / "base")))
    for reads in ("instance", "both"):
        save_published(folder / reads, reading(reads, folder / "base"))
    for name in ("empty", "cut", "misfit"):
        save_published(folder / name, tiny_config())
    (folder / "empty" / "model.safetensors").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    config = folder / "misfit" / "config.json"
    config.write_text(config.read_text().replace('"rank": 2', '"rank": 4'))
    for name, modules in (("fits", SPEC.modules), ("wide", (LoraModule("q_proj", 64, 64),))):
        adapter = init_adapter(jax.random.key(0), LoraSpec(modules, num_layers=2, rank=2))
        save_peft(adapter, folder / f"adapter-{name}", base_model="org/tiny")
    save_peft(init_adapter(jax.random.key(0), SPEC), folder / "adapter-cut")
    weights = folder / "adapter-cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """The folder that commands run in, with what they are pointed at."""
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(models)
    Path("file").write_text("text")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("text")
    Path("exp.py").write_text(EXPERIMENT)
    for task in ("one", "two"):
        folder = Path("tasks", task)
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(f"name: {task}\ndescriptions: ['Say {task}.']\n")
        for name in ("train", "test"):
            (folder / f"{name}.jsonl").write_text('{"input": "red blue", "output": "red"}\n')
    return tmp_path
