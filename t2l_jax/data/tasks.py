"""A task is a name, descriptions, examples and a metric. Here: its type, and the loader of local folders.

The folder of a task holds three files:

    task.yaml      name, descriptions; if wanted, metric ("exact_match" when absent), use ("train" when absent),
                   kind ("generation" when absent) and labels (the answers of a classification)
    train.jsonl    one {"input": ..., "output": ..., "outputs": [accepted answers]} a line; outputs may be absent;
                   lines of a code task also hold "test" and "entry_point"
    test.jsonl     the same
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import yaml

from t2l_jax.errors import Unreachable, UserError
from t2l_jax.io.files import check_name, os_errors_explained, read_jsonl

# The registry of the original has about 200 descriptions a task and trains on 128 of them.
MAX_TRAIN_DESCRIPTIONS = 128
USES = ("train", "test")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """One instance: what the model reads, what it is trained to answer, and every answer that counts as right.

    Of a code task also `test`, Python text that defines `check(function)`, and `entry_point`, the function's name.
    """

    input: str
    output: str
    accepted: tuple[str, ...]
    test: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class Task:
    """A task. `unseen_descriptions` are wordings never trained on; a task of use "test" is never trained on at all.

    `kind` is free text ("classification", "multiple_choice", "code", ...); `labels` are a classification's answers.
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

    def held_out_wording(self, draw: int = 0) -> str:
        """The draw-th wording that is never trained on; of a task without such wordings, the draw-th of the others."""
        texts = self.unseen_descriptions or self.descriptions
        return texts[draw % len(texts)]


def named_like(tasks: Sequence[Task], patterns: Sequence[str]) -> list[Task]:
    """The tasks whose names match one of the patterns, such as 'sni_*'; without patterns all."""
    return [task for task in tasks if not patterns or any(fnmatchcase(task.name, pattern) for pattern in patterns)]


def refuse_unmatched(patterns: Sequence[str], tasks: Sequence[Task], field: str) -> None:
    """Raise UserError with the first pattern that no task's name matches; `field` is where it was given."""
    for pattern in patterns:
        if not named_like(tasks, [pattern]):
            raise UserError(f"{field}: no task is named like {pattern!r}: correct or remove it")


def spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """At most `count` of the tasks that have test examples, evenly spread over the collection."""
    return evenly([task for task in tasks if task.test], count)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spread, the first of them included."""
    size = min(count, len(items))
    return [items[index * len(items) // size] for index in range(size)]


def load_tasks(folder: str | Path) -> list[Task]:
    """The task in `folder`, or the tasks in its subfolders in order of their names.

    Descriptions past the first MAX_TRAIN_DESCRIPTIONS become unseen wordings. A task of which a file is missing or
    malformed, or a field absent or of the wrong type, is left out with a warning that names file and line and says
    how many tasks are left. Raises UserError where none is left, and where two tasks have one name.
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
    """What `load` makes of each path; those that it refuses are left out, with a warning that says why.

    Raises UserError where it refuses all, where two tasks have one name, and where the network is at fault.
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


def load_task(folder: Path) -> Task:
    """The task in `folder`; errors as in `load_tasks`."""
    path = folder / "task.yaml"
    fields = read_yaml(path)
    defaults = {"name": None, "metric": "exact_match", "use": "train", "kind": "generation"}
    name, metric, use, kind = (text_field(fields.get(key, value), key, str(path)) for key, value in defaults.items())
    if use not in USES:
        raise UserError(f"{path}: use is {use!r}: write one of {', '.join(USES)}")
    try:
        check_name(name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    descriptions = texts_field(fields.get("descriptions"), "descriptions", str(path))
    return Task(
        name=name,
        descriptions=descriptions[:MAX_TRAIN_DESCRIPTIONS],
        unseen_descriptions=descriptions[MAX_TRAIN_DESCRIPTIONS:],
        train=_read_examples(folder / "train.jsonl"),
        test=_read_examples(folder / "test.jsonl"),
        metric=metric,
        use=use,
        kind=kind,
        labels=texts_field(fields["labels"], "labels", str(path)) if fields.get("labels") else (),
    )


def check_unique(tasks: Iterable[Task]) -> None:
    """Raise UserError where two tasks have one name (upper and lower case do not tell two folders apart everywhere)."""
    seen: set[str] = set()
    for task in tasks:
        if task.name.lower() in seen:
            raise UserError(f"two tasks have the name {task.name!r}: rename one of them in its task.yaml")
        seen.add(task.name.lower())


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a YAML file. Raises UserError where it cannot be read, or holds no fields."""
    with os_errors_explained(path, "read"):
        data = path.read_bytes()
    try:
        fields = yaml.load(data, yaml.CSafeLoader)  # the same as safe_load, and ten times as fast
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected fields such as `name: ...`, got {type(fields).__name__}")
    return fields


def _read_examples(path: Path) -> tuple[Example, ...]:
    return tuple(_example(fields, f"{path}, line {number}") for number, fields in read_jsonl(path))


def _example(fields: dict[str, Any], where: str) -> Example:
    output = text_field(fields.get("output"), "output", where)
    accepted = texts_field(fields["outputs"], "outputs", where) if "outputs" in fields else (output,)
    code = (text_field(fields[key], key, where) if key in fields else "" for key in ("test", "entry_point"))
    return Example(text_field(fields.get("input"), "input", where), output, accepted, *code)


def text_field(value: object, field: str, where: str) -> str:
    """The value of a field if it is a text that is not empty, else UserError."""
    if isinstance(value, str) and value.strip():
        return value
    problem = "is missing" if value is None else "is empty" if isinstance(value, str) else f"is {value!r:.40}, not text"
    raise UserError(f"{where}: the field `{field}` {problem}: give it a text that is not empty")


def texts_field(value: object, field: str, where: str) -> tuple[str, ...]:
    """The value of a field if it is a list of texts that are not empty, else UserError."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: the field `{field}` must be a list of at least one text")
    return tuple(text_field(item, f"{field}[{i}]", where) for i, item in enumerate(value))
