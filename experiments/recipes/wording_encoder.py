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
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array

from t2l_jax.data.family import phrasing
from t2l_jax.data.family.split import Combination, combinations
from t2l_jax.data.tasks import MAX_TRAIN_DESCRIPTIONS, load_tasks
from t2l_jax.encoder import load_encoder
from t2l_jax.encoder.adapter import with_alpha
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.sentence import SentenceConfig, z_of_rows
from t2l_jax.io.files import cache_folder
from t2l_jax.lora import Adapter, init_adapter
from t2l_jax.progress import progress_bar

PARTS = ("select", "order", "transform", "format")
HEADINGS = (*PARTS, "task")
LABELS = 1024  # under a heading, at most
CHUNK = 8  # texts read together
DROPOUT = 0.1  # of z, before each classifier


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
        drawn = Drawn([], [], {name: [] for name in HEADINGS})
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


def mean_z(args: WordingEncoder, members: Sequence[Combination], others: Sequence[Described]) -> dict[str, np.ndarray]:
    """By task, the mean z of its first descriptions under the adapter `towards`."""
    described = {member.name: phrasing.descriptions(member, args.wordings) for member in members}
    described |= {task.name: task.descriptions[: args.wordings] for task in others}
    encoder = load_encoder(str(args.towards))
    z = encoder.embed([text for texts in described.values() for text in texts], cache_folder() / "embeddings")
    ends = np.cumsum([len(texts) for texts in described.values()])
    return {name: part.mean(0) for name, part in zip(described, np.split(z, ends[:-1]), strict=True)}


class Chunk(NamedTuple):
    """Texts that are read together: rows of tokens, the label under each heading (-1: none), and the means to learn."""

    rows: np.ndarray
    labels: dict[str, np.ndarray]
    means: np.ndarray | None


def chunks(
    encoder: FlaxEncoder, drawn: Drawn, numbers: dict[str, dict[str, int]], means: dict[str, np.ndarray] | None
) -> Iterator[Chunk]:
    """A batch in chunks of texts of similar length, since those of real tasks are many times as long.

    Labels get their numbers when they are first seen.
    """
    labels = {
        name: np.asarray([numbers[name].setdefault(label, len(numbers[name])) if label else -1 for label in column])
        for name, column in drawn.labels.items()
    }
    order = sorted(range(len(drawn.texts)), key=lambda index: len(drawn.texts[index]))
    for start in range(0, len(order), CHUNK):
        some = order[start : start + CHUNK]
        wanted = None if means is None else np.stack([means[drawn.owners[index]] for index in some])
        rows = encoder.token_rows([drawn.texts[index] for index in some])
        yield Chunk(rows, {name: column[some] for name, column in labels.items()}, wanted)


def fresh_heads(dim: int) -> dict[str, Any]:
    """A linear classifier on z for each heading."""
    heads = {}
    for key, name in zip(jax.random.split(jax.random.key(2), len(HEADINGS)), HEADINGS, strict=True):
        draw = jax.random.uniform(key, (dim + 1, LABELS), minval=-(dim**-0.5), maxval=dim**-0.5)
        heads[name] = {"kernel": draw[1:], "bias": draw[0]}
    return heads


embed = jax.jit(z_of_rows, static_argnums=0)


@partial(jax.jit, static_argnums=(0, 1))
def gradient(
    config: SentenceConfig, pull: float, frozen: Any, trained: Any, chunk: Chunk, key: Array
) -> tuple[tuple[Array, Array], Any]:
    """Loss and squared distance to the means, summed over a chunk, and the gradient of the loss by what is trained."""

    def loss(trained: Any) -> tuple[Array, Array]:
        z = z_of_rows(config, frozen, chunk.rows, trained["adapter"])
        total = distance = jnp.zeros(())
        for number, (name, head) in enumerate(trained["heads"].items()):
            kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - DROPOUT, z.shape)
            scores = jnp.where(kept, z / (1 - DROPOUT), 0.0) @ head["kernel"] + head["bias"]
            wanted = chunk.labels[name]
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(wanted, 0))
            total += jnp.sum(jnp.where(wanted >= 0, losses, 0.0))
        if chunk.means is not None:
            distance = jnp.sum(jnp.mean((z - chunk.means) ** 2, axis=1))
        return total + pull * distance, distance

    return jax.value_and_grad(loss, has_aux=True)(trained)


def beginning(args: WordingEncoder) -> tuple[FlaxEncoder, Adapter]:
    """MiniLM, which cuts texts at 128 word pieces, and its adapter: fresh, or the one to begin from."""
    encoder = load_encoder("minilm" if args.init_from is None else str(args.init_from))
    assert isinstance(encoder, FlaxEncoder)
    encoder.folder.tokenizer.enable_truncation(128)
    if encoder.lora is not None:
        return encoder, with_alpha(encoder.lora, 2.0 * encoder.lora.spec.rank)
    transformer = encoder.folder.config.transformer
    spec = transformer.lora_spec(tuple(transformer.projection_widths()), args.rank, 2.0 * args.rank)
    return encoder, init_adapter(jax.random.key(0), spec)


def make_optimizer(args: WordingEncoder) -> optax.GradientTransformation:
    """AdamW for both parts, with rates that rise for 50 steps and fall to zero; the adapter's gradient is clipped."""

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(
            lambda step: rate * jnp.minimum(1.0, (step + 1) / 50) * (1 - step / args.steps), weight_decay=0.01
        )

    clipped = optax.chain(optax.clip_by_global_norm(1.0), adamw(args.learning_rate))
    return optax.multi_transform({"adapter": clipped, "heads": adamw(3e-3)}, {"adapter": "adapter", "heads": "heads"})


def main(args: WordingEncoder) -> None:
    """Train, and save the adapter."""
    logging.getLogger("t2l_jax.encoder.text").setLevel(logging.ERROR)  # texts are cut, which it would say at each step
    members = combinations()["train"]
    real, listed, held_out = other_tasks(args)
    means = None if args.towards is None else mean_z(args, members, [*real, *listed, *held_out])
    encoder, adapter = beginning(args)
    config, frozen = encoder.folder.config, encoder.params
    trained = {"adapter": adapter, "heads": fresh_heads(encoder.dim)}
    optimizer = make_optimizer(args)
    state, numbers = optimizer.init(trained), {name: {} for name in HEADINGS}

    @jax.jit
    def update(trained: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state

    def unread(adapter: Adapter) -> str:
        """How far single descriptions of held-out tasks are from their means."""
        if not held_out:
            return ""
        far = []
        for task in held_out:
            z = embed(config, frozen, encoder.token_rows(task.descriptions[-4:]), adapter)
            far.append(np.mean((np.asarray(z) - means[task.name]) ** 2))
        return f", of held-out tasks {np.mean(far):.3f}"

    started = time.perf_counter()
    with progress_bar() as bar:
        shown = bar.add_task("Training the encoder", total=args.steps, rate="")
        stream = batches(args, members, real, listed)
        for step, drawn in zip(range(args.steps), stream, strict=False):
            key = jax.random.fold_in(jax.random.key(1), step)
            found = [
                gradient(config, args.pull, frozen, trained, chunk, jax.random.fold_in(key, number))
                for number, chunk in enumerate(chunks(encoder, drawn, numbers, means))
            ]
            (loss, distance), gradients = jax.tree.map(lambda *parts: sum(parts) / args.batch, *found)
            trained, state = update(trained, state, gradients)
            bar.advance(shown)
            if (step + 1) % 50 == 0:
                far = "" if means is None else f", distance {distance:.3f}{unread(trained['adapter'])}"
                print(f"step {step + 1}: loss {loss:.2f}{far}, {time.perf_counter() - started:.0f} s", flush=True)
    encoder.save_adapter(args.out, trained["adapter"])


if __name__ == "__main__":
    main(tyro.cli(WordingEncoder))
