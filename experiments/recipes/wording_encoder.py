"""An adapter for the text encoder, so that it reads through the wording of a description to what it asks for.

Command: python -m experiments.recipes.wording_encoder --tasks FOLDER --out runs/encoder      (10 minutes on 2 cores)
         packaged.py has the further runs, each of which goes on from the one before
Answer:  a linear probe on z then finds all operations of most unseen wordings (results/embedder_probe), and z of tasks
         that the encoder has not read lies nearer to the task's mean (results/wording_distance)

MiniLM gets a LoRA adapter and learns to name what a description asks for: of the family the select, order, transform
and format (linear classifiers on z, thrown away afterwards), of other tasks which task it is. With --towards every
description also learns the mean z that its task has under another adapter. Training tasks and wordings only.
"""

import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from peft import LoraConfig, PeftModel, get_peft_model

from t2l_jax.data.family import phrasing
from t2l_jax.data.family.split import Combination, combinations
from t2l_jax.data.tasks import MAX_TRAIN_DESCRIPTIONS, load_tasks
from t2l_jax.encoder import SHORT_NAMES, load_encoder, prepare
from t2l_jax.encoder.sentence_transformers import SentenceEncoder
from t2l_jax.io.files import atomic_folder, cache_folder
from t2l_jax.io.locations import resolve
from t2l_jax.progress import progress_bar

PARTS = ("select", "order", "transform", "format")
CHUNK = 8  # texts read together


@dataclass(frozen=True)
class WordingEncoder:
    """Train an adapter for MiniLM and save it as a PEFT folder."""

    out: Path
    tasks: Path | None = None
    """A folder of real tasks."""
    steps: int = 340
    batch: int = 64
    real_share: float = 0.15
    """Share of a batch's descriptions that are of real tasks."""
    registry: Path | None = None
    """The original's registry, one task a line (gzip): descriptions without data. Every twentieth task is held out."""
    registry_share: float = 0.4
    """Share of a batch's descriptions that are of the registry."""
    rank: int = 16
    learning_rate: float = 2e-3
    init_from: Path | None = None
    """An adapter to go on from; without it MiniLM gets a fresh one."""
    towards: Path | None = None
    """An adapter under which each task's mean z is computed, for its descriptions to learn."""
    wordings: int = 16
    """Number of descriptions that the mean is taken over."""
    pull: float = 10.0
    """Weight of the squared distance to that mean, averaged over z, beside the cross-entropies."""


class Described(NamedTuple):
    """A task without its data."""

    name: str
    descriptions: tuple[str, ...]


class Drawn(NamedTuple):
    """Descriptions, the task of each, and its label under every heading, "" where it has none."""

    texts: list[str]
    owners: list[str]
    labels: dict[str, list[str]]


def other_tasks(args: WordingEncoder) -> tuple[list[Described], list[Described], list[Described]]:
    """Real training tasks, tasks of the registry, and some of the latter that are held out.

    Of the registry what the original trains on, less what the folder has; 128 descriptions each, as of every task.
    """
    found = [] if args.tasks is None else load_tasks(args.tasks)
    real = [Described(task.name, task.descriptions) for task in found if task.use == "train"]
    if args.registry is None:
        return real, [], []
    lines = map(json.loads, gzip.decompress(args.registry.read_bytes()).splitlines())
    listed = [
        Described(line["name"], tuple(line["descriptions"][:MAX_TRAIN_DESCRIPTIONS]))
        for line in lines
        if line["t2l_split"] == "train" and not line["pack_tasks"]
    ]
    return real, [task for index, task in enumerate(listed) if index % 20], listed[::20]


def batches(
    args: WordingEncoder, members: Sequence[Combination], real: Sequence[Described], listed: Sequence[Described]
) -> Iterator[Drawn]:
    """Without end, descriptions of real tasks, of the registry's and of the family."""
    stream = Random(0)
    while True:
        drawn = Drawn([], [], {name: [] for name in (*PARTS, "task")})
        for _ in range(args.batch):
            share = stream.random()
            others = (
                real if share < args.real_share else listed if share < args.real_share + args.registry_share else ()
            )
            if others:
                task = stream.choice(others)
                drawn.texts.append(stream.choice(task.descriptions))
                drawn.owners.append(task.name)
                found = {"task": task.name}
            else:
                member = stream.choice(members)
                drawn.texts.append(phrasing.describe(stream, member, held_out=False))
                drawn.owners.append(member.name)
                found = {name: "/".join(owner) for name, owner in member.parts.items()}
            for name, column in drawn.labels.items():
                column.append(found.get(name, ""))
        yield drawn


def mean_z(
    args: WordingEncoder, members: Sequence[Combination], others: Sequence[Described]
) -> dict[str, torch.Tensor]:
    """By task, the mean z of its first descriptions under the adapter `towards`."""
    described = {member.name: phrasing.descriptions(member, args.wordings) for member in members}
    described |= {task.name: task.descriptions[: args.wordings] for task in others}
    encoder = load_encoder(str(args.towards))
    z = encoder.embed([text for texts in described.values() for text in texts], cache_folder() / "embeddings")
    ends = np.cumsum([len(texts) for texts in described.values()])
    return {name: torch.from_numpy(part.mean(0)) for name, part in zip(described, np.split(z, ends[:-1]), strict=True)}


def embed(encoder: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """z as t2l_jax.encoder makes it: mean of the last states, of length sqrt(d). Texts are cut at 128 word pieces.

    Texts of similar length are read together: those of real tasks are many times as long.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = []
    for start in range(0, len(order), CHUNK):
        chunk = [prepare(texts[index], "a description") for index in order[start : start + CHUNK]]
        read = tokenizer(chunk, padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = read["attention_mask"][..., None]
        mean = (encoder(**read).last_hidden_state * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(mean) * mean.shape[1] ** 0.5)
    return torch.cat(found)[torch.tensor(order).argsort()]


class Classifiers(torch.nn.Module):
    """One linear classifier on z for each heading; labels get their numbers when they are first seen."""

    def __init__(self, dim: int, headings: tuple[str, ...], most: int = 1024):
        super().__init__()
        self.linear = torch.nn.ModuleDict({name: torch.nn.Linear(dim, most) for name in headings})
        self.numbers: dict[str, dict[str, int]] = {name: {} for name in headings}

    def loss(self, z: torch.Tensor, labels: dict[str, list[str]]) -> torch.Tensor:
        """Cross-entropy, summed over headings and averaged over the batch; an empty label counts nothing."""
        total = torch.zeros(())
        for name, column in labels.items():
            numbers = self.numbers[name]
            wanted = torch.tensor([numbers.setdefault(label, len(numbers)) if label else -1 for label in column])
            scores = self.linear[name](torch.nn.functional.dropout(z, 0.1))
            total = total + torch.nn.functional.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum")
        return total / len(z)


def trainable(args: WordingEncoder, model: Any) -> Any:
    """MiniLM with an adapter, fresh or the one to begin from, and without dropout, which costs a third of the time."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    if args.init_from is not None:
        return PeftModel.from_pretrained(model, str(args.init_from), is_trainable=True).train()
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=r"encoder\..*(query|key|value|dense)")
    return get_peft_model(model, lora).train()


def main(args: WordingEncoder) -> None:
    """Train, and save the adapter."""
    torch.manual_seed(0)
    members = combinations()["train"]
    real, listed, held_out = other_tasks(args)
    means = None if args.towards is None else mean_z(args, members, [*real, *listed, *held_out])
    loaded = SentenceEncoder.load(resolve(SHORT_NAMES["minilm"])).model
    encoder = trainable(args, loaded[0].auto_model)
    heads = Classifiers(384, (*PARTS, "task"))
    trained = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": trained, "lr": args.learning_rate}, {"params": heads.parameters(), "lr": 3e-3}], weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - step / args.steps)
    )

    def unread(encoder: Any) -> str:
        """How far single descriptions of held-out tasks are from their means."""
        if not held_out:
            return ""
        with torch.no_grad():
            z = embed(encoder, loaded.tokenizer, [text for task in held_out for text in task.descriptions[-4:]])
        target = torch.stack([means[task.name] for task in held_out]).repeat_interleave(4, 0)
        return f", of held-out tasks {(z - target).square().mean().item():.3f}"

    started = time.perf_counter()
    with progress_bar() as bar:
        shown = bar.add_task("Training the encoder", total=args.steps, rate="")
        stream = batches(args, members, real, listed)
        for step, drawn in zip(range(args.steps), stream, strict=False):
            z = embed(encoder, loaded.tokenizer, drawn.texts)
            loss = heads.loss(z, drawn.labels)
            if means is not None:
                distance = (z - torch.stack([means[owner] for owner in drawn.owners])).square().mean()
                loss = loss + args.pull * distance
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(shown)
            if (step + 1) % 50 == 0:
                far = "" if means is None else f", distance {distance.item():.3f}{unread(encoder)}"
                print(
                    f"step {step + 1}: loss {loss.item():.2f}{far}, {time.perf_counter() - started:.0f} s", flush=True
                )
    encoder.peft_config["default"].base_model_name_or_path = SHORT_NAMES["minilm"]
    with atomic_folder(args.out) as partial:
        encoder.save_pretrained(str(partial), save_embedding_layers=False)  # "auto" would ask the hub
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's own, which names a folder of this machine


if __name__ == "__main__":
    main(tyro.cli(WordingEncoder))
