"""Tasks: name, descriptions, examples and metric; and the loader of local task folders.

The folder of a task holds three files:

    task.yaml      name, descriptions; optional: definition (for prompts that hold it), metric (default
                   "exact_match"), use (default "train"), kind (default "generation") and labels (the answers of a
                   classification)
    train.jsonl    one {"input": ..., "output": ..., "outputs": [accepted answers]} per line; outputs is optional;
                   lines of a code task also hold "test" and "entry_point"
    test.jsonl     the same
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar

from t2l_jax.errors import Unreachable, UserError
from t2l_jax.io.files import check_name, os_errors_explained, read_jsonl
from t2l_jax.io.yaml_file import read_yaml
from t2l_jax.schema import Schema, Several, Text, Texts, checked

# The original's registry has about 200 descriptions per task, 128 of them for training.
MAX_TRAIN_DESCRIPTIONS = 128
Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """One instance: the input, the answer to train on, and all accepted answers.

    For a code task also `test`, Python source that defines `check(function)`, and `entry_point`, the function's name.
    `prompt` is the input as its source asks it, with the task's definition; "" if the source has no form of its own.
    """

    input: str
    output: str
    accepted: tuple[str, ...]
    test: str = ""
    entry_point: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Task:
    """A task. `unseen_descriptions` are held-out wordings; a task of use "test" is held out entirely.

    `kind` is free text ("classification", "multiple_choice", "code", ...); `labels` are a classification's answers.
    `definition` says the task in full; "" if it has none.
    """

    name: str
    descriptions: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str = "exact_match"
    unseen_descriptions: tuple[str, ...] = ()
    use: str = "train"
    kind: str = "generation"
    labels: tuple[str, ...] = ()
    definition: str = ""

    def held_out_wording(self, draw: int = 0) -> str:
        """Held-out wording number `draw`, modulo their number; a training wording if none are held out."""
        texts = self.unseen_descriptions or self.descriptions
        return texts[draw % len(texts)]


def named_like(tasks: Sequence[Task], patterns: Sequence[str]) -> list[Task]:
    """The tasks whose names match one of the patterns, such as 'sni_*'; all if there are no patterns."""
    return [task for task in tasks if not patterns or any(fnmatchcase(task.name, pattern) for pattern in patterns)]


def refuse_unmatched(patterns: Sequence[str], tasks: Sequence[Task], field: str) -> None:
    """Raise UserError for the first pattern that matches no task; `field` is the option that holds it."""
    for pattern in patterns:
        if not named_like(tasks, [pattern]):
            raise UserError(f"{field}: no task is named like {pattern!r}: correct or remove it")


def spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks that have test examples, evenly spaced."""
    return evenly([task for task in tasks if task.test], count)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced, starting with the first."""
    size = min(count, len(items))
    return [items[index * len(items) // size] for index in range(size)]


def load_tasks(folder: str | Path) -> list[Task]:
    """The task in `folder`, or the tasks in its subfolders, sorted by folder name.

    Descriptions after the first MAX_TRAIN_DESCRIPTIONS are held out. A task with a missing or malformed file, or a
    missing or mistyped field, is left out with a warning that names file and line. Raises UserError if no task is left
    or if two tasks share a name.
    """
    folder = Path(folder)
    with os_errors_explained(folder, "read"):
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if (folder / "task.yaml").exists():
        return [load_task(folder)]
    if not subfolders:
        raise UserError(f"{folder}: neither a task.yaml nor folders of tasks are here: give a folder of tasks")
    return load_each(subfolders, load_task, folder)


def load_each(paths: Sequence[Path], load: Callable[[Path], Task], folder: Path) -> list[Task]:
    """`load` each path; those that raise UserError are left out with a warning that says why.

    Raises UserError if all fail, if two tasks share a name, and Unreachable if the network fails.
    """
    tasks, problems = [], []
    for path in paths:
        try:
            tasks.append(load(path))
        except Unreachable:
            raise
        except UserError as error:
            problems.append(error)
    if problems and not tasks:
        raise problems[0]
    if problems:
        text = f"{folder}: {len(problems)} of {len(paths)} tasks are damaged and left out, {len(tasks)} are left: "
        warnings.warn(text + "; ".join(map(str, problems)), stacklevel=3)
    check_unique(tasks)
    return tasks


class TaskFile(Schema):
    """The layout of task.yaml."""

    name: Text
    descriptions: Texts
    definition: Text | None = None
    metric: Text = "exact_match"
    use: Literal["train", "test"] = "train"
    kind: Text = "generation"
    labels: Several[Text] | None = None


class ExampleLine(Schema):
    """The layout of a line of train.jsonl or test.jsonl."""

    input: Text
    output: Text
    outputs: Texts = ()
    test: Text = ""
    entry_point: Text = ""


def load_task(folder: Path) -> Task:
    """The task in `folder`; errors as in `load_tasks`."""
    path = folder / "task.yaml"
    given = checked(TaskFile, read_yaml(path), str(path))
    return Task(
        name=task_name(given.name, str(path)),
        descriptions=given.descriptions[:MAX_TRAIN_DESCRIPTIONS],
        unseen_descriptions=given.descriptions[MAX_TRAIN_DESCRIPTIONS:],
        train=_read_examples(folder / "train.jsonl"),
        test=_read_examples(folder / "test.jsonl"),
        metric=given.metric,
        use=given.use,
        kind=given.kind,
        labels=given.labels or (),
        definition=given.definition or "",
    )


def task_name(name: str, where: str) -> str:
    """The name if it is safe as a folder's. Raises UserError that names `where`, the file."""
    try:
        return check_name(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_unique(tasks: Iterable[Task]) -> None:
    """Raise UserError if two names are equal, ignoring case (some file systems do not distinguish case)."""
    seen: set[str] = set()
    for task in tasks:
        if task.name.lower() in seen:
            raise UserError(f"two tasks have the name {task.name!r}: rename one of them in its task.yaml")
        seen.add(task.name.lower())


def _read_examples(path: Path) -> tuple[Example, ...]:
    return tuple(_example(fields, f"{path}, line {number}") for number, fields in read_jsonl(path))


def _example(fields: dict[str, Any], where: str) -> Example:
    given = checked(ExampleLine, fields, where)
    return Example(given.input, given.output, given.outputs or (given.output,), given.test, given.entry_point)
