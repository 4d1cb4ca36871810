"""A task is a name, descriptions, examples and a metric. Here: its type, and the loader of local folders.

A folder of a task holds `task.yaml` (name, metric, descriptions), `train.jsonl` and `test.jsonl`; each line of these is
`{"input": ..., "output": ..., "outputs": [accepted answers]}`, the last field being optional.
"""

from dataclasses import dataclass

# The registry of the original has about 200 descriptions a task and trains on 128 of them.
MAX_TRAIN_DESCRIPTIONS = 128


@dataclass(frozen=True)
class Example:
    """One instance: what the model reads, what it is trained to answer, and every answer that counts as right."""

    input: str
    output: str
    accepted: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """`descriptions` are for training; `unseen_descriptions` are wordings of the same task never trained on."""

    name: str
    descriptions: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = "exact_match"
    unseen_descriptions: tuple[str, ...] = ()
