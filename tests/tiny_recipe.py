"""A recipe of three steps on two tiny tasks, with a tiny base model that is the text encoder, too."""

import json
from collections.abc import Sequence
from pathlib import Path

from tiny_published import save_base

from t2l_jax.data.batches import BatchConfig
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.recipe import LoraConfig, Recipe


def write_task(folder: Path, name: str, descriptions: Sequence[str], use: str = "train") -> None:
    """A task that answers every list of words with one of them."""
    path = folder / name
    path.mkdir(parents=True)
    path.joinpath("task.yaml").write_text(json.dumps({"name": name, "descriptions": [*descriptions], "use": use}))
    lines = [
        {"input": f"one two {colour}", "output": "one" if "first" in name else colour} for colour in ("red", "blue")
    ]
    for split in ("train", "test"):
        path.joinpath(f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_recipe(folder: Path) -> Recipe:
    """Its base model and tasks are written into the folder. Every run of it compiles the same step."""
    save_base(folder / "base")
    write_task(folder / "tasks", "first", ["say the first word", "answer with the first word"])
    write_task(folder / "tasks", "last", ["say the last word"])
    write_task(folder / "tasks", "unseen-last", ["answer with the last word"], use="test")
    return recipe_in(folder)


def recipe_in(folder: Path) -> Recipe:
    """The recipe whose base model and tasks are in the folder already."""
    base = folder / "base"
    return Recipe(
        base=str(base),
        base_name="org/tiny",
        encoder=f"last-token:{base}",
        tasks=(str(folder / "tasks"),),
        lora=LoraConfig(rank=2),
        hypernet=HypernetConfig(head="M", latent=8, head_in=16),
        batch=BatchConfig(tasks=2, rows=1, length=48),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        loop=LoopConfig(steps=3, log_every=2, checkpoint_every=2),
    )
