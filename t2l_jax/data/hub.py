"""Tasks from the hub, described by a registry in the format of the original: a folder of `<name>/metadata.yaml`.

    descriptions          wordings of the task
    ds_kwargs             arguments of `datasets.load_dataset`: path, name, split, data_files, data_dir, revision
    user_prompt_template  the instance, with columns of the row in braces: "{question}", "{choices[label][0]}"
    response_field        the column that holds the answer, or the list of accepted answers
    assistant_prefill, assistant_postfill   optional text before and after the answer
    metric, kind, labels  as in task.yaml; default: those of the data set in benchmarks.py, else "exact_match"
    t2l_split             "train": training task; "unlisted": left out; else held out. Default: Lots-of-LoRAs is for
                          training, everything else is held out

Lots-of-LoRAs has the definition, examples and instance in one column `input`: `task_def` and `problem` are extracted
from it, and `answer` is its `output`. An example's `prompt` is the template as it is, for prompts that hold the
definition; its `input` is the same with an empty task_def, since elsewhere descriptions carry the task.

`path` may be a folder next to metadata.yaml. A data set's code never runs: `datasets` has no such option since 4.0.
"""

import re
import string
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import datasets
from pydantic import Field

from t2l_jax.data.benchmarks import BENCHMARKS, Benchmark, Code
from t2l_jax.data.rows import Source, load_rows
from t2l_jax.data.tasks import MAX_TRAIN_DESCRIPTIONS, Example, Task, load_each, task_name
from t2l_jax.errors import UserError
from t2l_jax.io.yaml_file import read_yaml
from t2l_jax.schema import Schema, Several, Text, Texts, checked

METADATA = "metadata.yaml"
MAX_TEST = 100  # test examples: the last rows, at most a tenth of them
# A template's field: column, or column[item]. Python's format converts the digits of an item.
FIELD = re.compile(r"(?!\d+(\[|$))[^.\[\]]+(\[(?!\d{10})[^.\[\]]+\])*")
AFTER_DEFINITION = ("\n\nPositive Example", "\n\nNegative Example", "Now complete the following example")
# What the original puts after a definition (see docs/paper.md).
WITHOUT_EXPLANATION = " Please complete the task without any explanation."
LAST_EXAMPLE = re.compile(r"Now complete the following example\s*+-(\s++)Input:")


class Metadata(Schema):
    """The layout of metadata.yaml."""

    descriptions: Texts
    ds_kwargs: Source
    user_prompt_template: Annotated[Text, Field(max_length=20_000)]
    response_field: Text
    system_message: str | None = None
    assistant_prefill: str | None = None
    assistant_postfill: str | None = None
    metric: Text | None = None
    kind: Text | None = None
    labels: Several[Text] | None = None
    t2l_split: str | None = None


def is_registry(folder: Path) -> bool:
    """True for a folder of `<name>/metadata.yaml`."""
    return any(folder.glob(f"*/{METADATA}"))


def load_registry(folder: Path) -> list[Task]:
    """All listed tasks of a registry, sorted by name. With HF_HUB_OFFLINE=1 only the cache is read.

    Downloads are cached, and retried on network errors. A task whose file is malformed or whose data set cannot be
    loaded is left out with a warning. Raises UserError if no task is left or the hub cannot be reached.
    """
    listed = [path for path in sorted(folder.glob(f"*/{METADATA}")) if _split(path) != "unlisted"]
    if not listed:
        raise UserError(f"{folder}: all its tasks are unlisted: there is nothing to load")
    return load_each(listed, load_hub_task, folder)


def _split(path: Path) -> Any:
    """The field `t2l_split`; None if absent or if the file is malformed, which loading the task reports."""
    try:
        return read_yaml(path).get("t2l_split")
    except UserError:
        return None


def load_hub_task(path: Path) -> Task:
    """The task described by a metadata.yaml, named after its folder.

    Raises UserError that names the file and the field or data set.
    """
    where = str(path)
    given = checked(Metadata, read_yaml(path), where)
    name = task_name(path.parent.name, where)
    if given.system_message:
        raise UserError(f"{where}: the field `system_message` is not supported: put its text into user_prompt_template")
    check_template(given.user_prompt_template, where)
    source = given.ds_kwargs
    benchmark = BENCHMARKS.get(source.path, Benchmark())
    try:
        rows = load_rows(source, path)
        examples = list(_examples(rows, given, benchmark, where))
    except UserError:
        raise
    except Exception as error:  # `datasets` decodes a row when it is asked for
        raise UserError(f"{where}: a row of {source.path} cannot be read ({str(error)[:300]})") from error
    if not examples:
        raise UserError(f"{where}: no row of {source.path} makes an example: check user_prompt_template")
    count = min(MAX_TEST, len(examples) // 10)
    trained = "train" if source.path.startswith("Lots-of-LoRAs/") else "eval"
    return Task(
        name=name,
        descriptions=given.descriptions[:MAX_TRAIN_DESCRIPTIONS],
        unseen_descriptions=given.descriptions[MAX_TRAIN_DESCRIPTIONS:],
        train=tuple(examples[: len(examples) - count]),
        test=tuple(examples[len(examples) - count :]),
        metric=given.metric or benchmark.metric,
        kind=given.kind or benchmark.kind,
        labels=given.labels or benchmark.labels,
        use="train" if (given.t2l_split or trained) == "train" else "test",
        definition=_derived(rows[0]).get("task_def", ""),
    )


def check_template(template: str, where: str) -> None:
    """Raise UserError if a template is malformed or does more than name columns and their items."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}: user_prompt_template: {error}: write {{{{ for a brace") from error
    for _, field, spec, conversion in parts:
        if field is not None and (not FIELD.fullmatch(field) or spec or conversion):
            wanted = "must be a column, or a column[item]; write {{ for a brace"
            raise UserError(f"{where}: user_prompt_template: {{{field}}} {wanted}")


def _examples(rows: datasets.Dataset, given: Metadata, benchmark: Benchmark, where: str) -> Iterator[Example]:
    """The examples of the rows; incomplete rows are left out with a warning."""
    short, template, response = 0, given.user_prompt_template, given.response_field
    named = {re.split(r"[.\[]", field)[0] for _, field, _, _ in string.Formatter().parse(template) if field}
    for row in rows:
        columns = {**row, **_derived(row)}
        if any(columns.get(name, "") is None for name in named):
            short += 1
            continue
        try:
            text = template.format_map({**columns, "task_def": ""}).strip()
            defined = "task_def" in columns or "task_def" not in named
            prompt = template.format_map(columns).strip() if defined else ""
            answer = columns[response]
        except KeyError as error:
            raise UserError(f"{where}: there is no column {error!s:.80}, only {', '.join(sorted(columns))}") from error
        except IndexError:  # a question with fewer choices than the others
            short += 1
            continue
        except TypeError as error:
            raise UserError(f"{where}: a column cannot be indexed as the template does ({error})") from error
        answers = tuple(_text(item, response, where) for item in (answer if isinstance(answer, list) else [answer]))
        if not text or not answers or not all(item.strip() for item in answers):
            short += 1
            continue
        before, after = given.assistant_prefill or "", given.assistant_postfill or ""
        outputs = tuple(f"{before}{item}{after}" for item in answers)
        try:
            code = benchmark.code(row) if benchmark.code else Code("", "")
        except (LookupError, SyntaxError, TypeError, ValueError):  # it has no usable test
            short += 1
            continue
        yield Example(text, outputs[0], outputs, *code, prompt)
    if short:
        warnings.warn(f"{where}: {short} of {len(rows)} rows are incomplete and left out", stacklevel=2)


def _derived(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that templates of the registry name and that are derived from those of the data set."""
    derived: dict[str, Any] = {}
    if isinstance(row.get("input"), str) and (problem := _problem(row["input"])) is not None:
        derived = {"problem": problem, "answer": row.get("output")}
        if definition := _definition(row["input"]):
            derived["task_def"] = definition + WITHOUT_EXPLANATION
    if isinstance(row.get("test_list"), list):
        derived["assertions"] = "\n".join(map(str, row["test_list"]))
    return derived


def _problem(text: str) -> str | None:
    """The instance in a prompt of Super-NaturalInstructions; None if the text is no such prompt.

    It stands between the last "Input:" and the final "Output:", after a definition and a blank line.
    """
    starts = [match for match in LAST_EXAMPLE.finditer(text) if "\n" in match[1]]
    if not (starts and text.startswith("Definition:") and text.rstrip().endswith("Output:")):
        return None
    before, body = text[: starts[-1].start()], text[starts[-1].end() :].rstrip().removesuffix("Output:")
    blank = any(not line.strip() for line in before.split("\n")[1:-1])
    return body.strip() if blank and "\n" in body[len(body.rstrip()) :] else None


def _definition(text: str) -> str:
    """The definition at the beginning of a prompt of Super-NaturalInstructions."""
    ends = (text.find(mark) for mark in AFTER_DEFINITION)
    return text[: min(end for end in ends if end >= 0)].removeprefix("Definition:").strip()


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, (dict, list)):
        raise UserError(f"{where}: response_field: the column {column} holds {type(value).__name__}s, not text")
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
