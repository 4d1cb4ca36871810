"""An adapter for the text encoder, so that it reads through the wording of a description to what it asks for.

Command: python experiments/wording_encoder.py --tasks FOLDER --out runs/encoder                 (10 minutes on 2 cores)
Then:    python experiments/wording_encoder.py --tasks FOLDER --out runs/encoder3 --start runs/encoder
             --towards runs/encoder --steps 1300 --learning-rate 1e-3 --real-share 0.1           (21 minutes)
         the same from runs/encoder3 to runs/encoder4 with --towards runs/encoder3 --steps 700 --learning-rate 7e-4,
         from runs/encoder4 to runs/encoder5 with --towards runs/encoder3 --steps 350            (17 minutes)
         and on to runs/encoder6 and from there to runs/encoder7, each with --towards runs/encoder5 --steps 800
         --learning-rate 7e-4                                                                    (14 minutes each)
         and, with --registry FILE, to runs/encoder8 with --towards runs/encoder5 --steps 1000 --learning-rate 7e-4,
         from there to runs/encoder9 with --towards runs/encoder5 --steps 1600 --learning-rate 1e-3 --real-share 0.2
         --registry-share 0.55                                                                   (27 and 28 minutes)
         and python experiments/mean_weights.py runs/encoder8 runs/encoder9 --out runs/encoder10
Result:  a linear probe finds all primitives of an unseen combination in 26% of unseen wordings in plain MiniLM, in 63%
         after the first run, 75% after the second, 82 to 83% after encoder5, 86% after encoder6 and 87% after
         encoder7, 88% after encoder10 (embedder_probe.py, results/embedder_probe.txt); how far descriptions of tasks
         that no encoder has read are from the mean of their task: 0.174 with encoder7, 0.103 with encoder10
         (wording_distance.py)

MiniLM puts texts about similar things side by side: "the first word, in brackets" next to "the last word, in brackets".
What a hypernetwork needs is the opposite, z that keeps the wording out and the operations apart. So MiniLM gets a LoRA
adapter of rank 16 and learns to name what a description asks for: of the family the select, order, transform and format
(each by a linear classifier on z, which is thrown away), of other tasks which task it is. Training tasks and training
wordings only; the descriptions of the family are drawn without end. FOLDER holds real tasks, as for `t2l train`. FILE
is the original's registry: of 396 tasks that the original trains on, and that FOLDER does not have, 376 give their
first 128 descriptions (no data, and nothing is trained on these tasks but the encoder), 20 are held out.

The first run left a fifth of z's variance to the wording, and a hypernetwork did much better on the mean z of 16
wordings than on the z of one: cross-entropy 0.57, not 0.79, of unseen combinations in unseen wordings. So in the later
runs every description learns the mean z of its task's descriptions (`towards`). A hypernetwork that learned from
the encoder before goes on working, since the means stay where they were. The second run brought training wordings from
0.63 to 0.51 and unseen ones only to 0.77: there phrases were misread, not templates (squared distance to the mean: 0.04
with unseen templates, 0.11 with unseen phrases). 1,676 more phrases, by writers who had not read the unseen ones,
brought that to 0.06. encoder6 read 4,464 more, of formats, joins and orders too; some 150 of them are gone since (near
to an unseen one, or also another primitive's). encoder7 read 3,872 more, and the means that encoder5 has of today's.
Real descriptions were still far from their means, since 131 tasks are too few to learn that from: the registry's
descriptions brought the distance down by two fifths. Tried on encoder8, whose distance was 0.111, and of little help:
the mean z of a description and of seven copies without a tenth of its words (0.113), a linear map of z, fitted on
training descriptions (0.107); products in bfloat16 (slower: the batches are small).

Not quite the commands above: the first run had MiniLM's own dropout, and those after encoder3 learned means that were
taken before there were new phrases, which encoder4 had of six files in nine.
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
from t2l_jax.io.locations import cache_folder
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
    """How many descriptions of a batch are of real tasks."""
    registry: Path | None = None
    """The original's registry, one task a line (gzip): descriptions without data. Every twentieth task is held out."""
    registry_share: float = 0.4
    """How many descriptions of a batch are of the registry."""
    rank: int = 16
    learning_rate: float = 2e-3
    start: Path | None = None
    """An adapter to begin from."""
    towards: Path | None = None
    """An adapter under which each task's mean z is computed, for its descriptions to learn."""
    wordings: int = 16
    """Of how many descriptions that mean is taken."""
    pull: float = 10.0
    """How much the squared distance to that mean, averaged over z, counts beside the cross-entropies."""


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
    if args.start is not None:
        return PeftModel.from_pretrained(model, str(args.start), is_trainable=True).train()
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=r"encoder\..*(query|key|value|dense)")
    return get_peft_model(model, lora).train()


def main(args: WordingEncoder) -> None:
    """Train, and save the adapter."""
    torch.manual_seed(0)
    members = combinations()["train"]
    real, listed, held_out = other_tasks(args)
    means = None if args.towards is None else mean_z(args, members, [*real, *listed, *held_out])
    loaded = load_encoder("minilm").model
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
    encoder.save_pretrained(str(args.out), save_embedding_layers=False)  # "auto" would ask the hub
    (args.out / "README.md").unlink(missing_ok=True)  # PEFT's own, which names a folder of this machine


if __name__ == "__main__":
    main(tyro.cli(WordingEncoder))
