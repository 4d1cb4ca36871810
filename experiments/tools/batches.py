"""From tasks to packed batches, as training and validation make them: encode, pack, collate."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import BatchConfig, Packed, Sampler, collate, pack
from t2l_jax.data.encoding import Job, encode_all
from t2l_jax.data.prompts import PromptMode
from t2l_jax.data.tasks import Task, evenly
from t2l_jax.encoder import Encoder
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.files import cache_folder
from t2l_jax.io.locations import resolve
from t2l_jax.training.material import Reader
from t2l_jax.training.trainees import LoraTable, TextHypernetwork

Z = Float[np.ndarray, "T z"]


def training_sampler(
    tasks: Sequence[Task],
    shape: BatchConfig,
    base: str,
    *,
    encoder: Encoder | None = None,
    modes: Sequence[PromptMode] = ("instance",),
    instruction_share: float = 0.0,
    most: int | None = None,
) -> Sampler:
    """The sampler of a training run on the tasks that fit in a row (`most` of them, evenly); no encoder: no text."""
    trainee = LoraTable if encoder is None else TextHypernetwork
    reader = Reader(trainee, load_tokenizer(resolve(base)), encoder, modes, cache_folder())
    rows = reader.training_tasks(tasks, [1.0] * len(tasks), shape.length)
    return Sampler(rows if most is None else evenly(rows, most), shape, 0, instruction_share)


def packed_tasks(jobs: Sequence[Job], base: str, rows: int, length: int) -> list[Packed]:
    """The examples of each job, the last first, as many as fit in its rows."""
    tables = encode_all(load_tokenizer(resolve(base)), jobs, cache_folder() / "tokens")
    return [pack(table, np.arange(len(table))[::-1], rows, length) for table in tables]


def batches_of(packed: Sequence[Packed], z: Z, together: int, length: int) -> Iterator[tuple[np.ndarray, int, Batch]]:
    """Batches of `together` tasks; yields the places of their tasks, how many of these count, and the batch.

    A last batch that is not full is filled up with its own tasks again.
    """
    for start in range(0, len(packed), together):
        real = np.arange(start, min(start + together, len(packed)))
        places = np.resize(real, together)
        yield places, len(real), collate([packed[place] for place in places], Condition(z[places]), length)
