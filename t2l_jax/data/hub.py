"""Tasks of the hub, as the original's registry describes them: a folder of `<name>/metadata.yaml`.

    descriptions          wordings of the task
    ds_kwargs             what `datasets.load_dataset` is called with: path, name, split, data_files, data_dir, revision
    user_prompt_template  the instance, with the columns of a row in braces: "{question}", "{choices[label][0]}"
    response_field        the column that holds the answer, or the list of accepted answers
    assistant_prefill, assistant_postfill   what stands before and after the answer; may be absent
    metric, kind, labels  as in task.yaml; when absent what benchmarks.py knows of the data set, else "exact_match"
    t2l_split             "train" is trained on, "unlisted" left out, anything else is for tests; when absent,
                          Lots-of-LoRAs is trained on

Lots-of-LoRAs has the instruction, examples and instance in one column `input`: `task_def` and `problem` are cut out of
it, and `answer` is its `output`. A template's task_def is left out, since the instruction is said by descriptions here.
`path` may be a folder beside metadata.yaml. Code of a data set never runs: `datasets` has no such option since 4.0.
"""

import re
import string
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import datasets

from t2l_jax.data.benchmarks import BENCHMARKS, Benchmark, Code
from t2l_jax.data.tasks import (
    MAX_TRAIN_DESCRIPTIONS,
    Example,
    Task,
    load_each,
    read_yaml,
    text_field,
    texts_field,
)
from t2l_jax.errors import Unreachable, UserError
from t2l_jax.io.files import check_name
from t2l_jax.io.locations import HTTP_ERROR, cache_folder

METADATA = "metadata.yaml"
MAX_TEST = 100  # the last rows, a tenth of them at most
FIELD = re.compile(r"(?!\d+(\[|$))[^.\[\]]+(\[[^.\[\]]+\])*")  # of a template: column, or column[item]
WAITS = (1.0, 4.0, 16.0)  # seconds before a download is tried again
DS_KWARGS = ("path", "name", "split", "data_files", "data_dir", "revision")
SUPER_NI = re.compile(
    r"Definition:\s*(?P<task_def>.*?)\n\s*\n.*Now complete the following example\s*-\s*\n"
    r"\s*Input:\s*(?P<problem>.*?)\s*\n\s*Output:\s*$",
    re.DOTALL,
)
NETWORK = (ConnectionError, TimeoutError, HTTP_ERROR)
Loaded = TypeVar("Loaded")


def is_registry(folder: Path) -> bool:
    """Whether this is a folder of `<name>/metadata.yaml`."""
    return any(folder.glob(f"*/{METADATA}"))


def load_registry(folder: Path) -> list[Task]:
    """All listed tasks of a registry, in order of their names. With HF_HUB_OFFLINE=1 only what is in the cache is read.

    Downloads are kept in the cache folder, and are tried again after a while where the network fails. A task whose file
    is malformed or whose data set is none is left out, with a warning. Raises UserError where none is left, and where
    the hub cannot be reached.
    """
    listed = [path for path in sorted(folder.glob(f"*/{METADATA}")) if _split(path) != "unlisted"]
    if not listed:
        raise UserError(f"{folder}: all its tasks are unlisted: there is nothing to load")
    return load_each(listed, load_hub_task, folder)


def _split(path: Path) -> Any:
    """The field `t2l_split`; None too where the file is malformed, which is said where the task is loaded."""
    try:
        return read_yaml(path).get("t2l_split")
    except UserError:
        return None


def load_hub_task(path: Path) -> Task:
    """The task that a metadata.yaml describes; its name is that of the folder.

    Raises UserError naming the file and field, or the data set.
    """
    where, fields = str(path), read_yaml(path)
    name = check_name(path.parent.name)
    descriptions = texts_field(fields.get("descriptions"), "descriptions", where)
    template = text_field(fields.get("user_prompt_template"), "user_prompt_template", where)
    response = text_field(fields.get("response_field"), "response_field", where)
    if fields.get("system_message"):
        raise UserError(f"{where}: the field `system_message` is not offered: put its text into user_prompt_template")
    around = (fields.get("assistant_prefill") or "", fields.get("assistant_postfill") or "")
    check_template(template, where)
    options = _options(fields.get("ds_kwargs"), path)
    benchmark = BENCHMARKS.get(fields["ds_kwargs"]["path"], Benchmark())
    rows = load_rows(options, where)
    examples = list(_examples(rows, template, response, around, benchmark, where))
    if not examples:
        raise UserError(f"{where}: no row of {options['path']} makes an example: look at user_prompt_template")
    count = min(MAX_TEST, len(examples) // 10)
    trained = "train" if str(options["path"]).startswith("Lots-of-LoRAs/") else "eval"
    return Task(
        name=name,
        descriptions=descriptions[:MAX_TRAIN_DESCRIPTIONS],
        unseen_descriptions=descriptions[MAX_TRAIN_DESCRIPTIONS:],
        train=tuple(examples[: len(examples) - count]),
        test=tuple(examples[len(examples) - count :]),
        metric=text_field(fields.get("metric", benchmark.metric), "metric", where),
        kind=text_field(fields.get("kind", benchmark.kind), "kind", where),
        labels=texts_field(fields["labels"], "labels", where) if fields.get("labels") else benchmark.labels,
        use="train" if fields.get("t2l_split", trained) == "train" else "test",
    )


def load_rows(options: dict[str, Any], where: str) -> datasets.Dataset:
    """The rows of a data set; `where` is the file that asks for it, for messages."""
    offline = datasets.config.HF_HUB_OFFLINE
    config = datasets.DownloadConfig(local_files_only=offline)

    def load() -> Any:
        folder = str(cache_folder() / "datasets")
        return datasets.load_dataset(**options, cache_dir=folder, download_config=config)

    try:
        rows = load() if offline else with_retries(load)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "look at ds_kwargs"
        if offline:
            advice = "it is not in the cache: run once with the network, without HF_HUB_OFFLINE"
        elif isinstance(error, NETWORK):
            advice = "the hub cannot be reached: try again later"
        kind = Unreachable if isinstance(error, NETWORK) and not offline else UserError
        raise kind(f"{where}: the data set {options['path']} cannot be loaded ({first}): {advice}") from error
    if not isinstance(rows, datasets.Dataset):
        raise UserError(f"{where}: ds_kwargs names no split: choose among {', '.join(map(str, rows))}")
    return rows


def with_retries(load: Callable[[], Loaded], sleep: Callable[[float], None] = time.sleep) -> Loaded:
    """What `load` returns; where the network or the server fails it is tried again after each of WAITS."""
    for wait in WAITS:
        try:
            return load()
        except NETWORK as error:
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if status < 500 and status != 429:  # asking again does not help
                raise
        sleep(wait)
    return load()


def check_template(template: str, where: str) -> None:
    """Raise UserError for a template that is none, or that does more than to name columns and items in them."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{where}: user_prompt_template: {error}: write {{{{ for a brace") from error
    for _, field, spec, conversion in parts:
        if field is not None and (not FIELD.fullmatch(field) or spec or conversion):
            wanted = "must be a column, or a column[item]; write {{ for a brace"
            raise UserError(f"{where}: user_prompt_template: {{{field}}} {wanted}")


def _options(value: Any, path: Path) -> dict[str, Any]:
    """The arguments of `load_dataset`; a path that is a folder beside metadata.yaml is that folder."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        raise UserError(f"{path}: the field `ds_kwargs` must be a mapping with `path`, the name of a data set")
    if unknown := sorted(value.keys() - set(DS_KWARGS)):
        raise UserError(f"{path}: ds_kwargs has {', '.join(unknown)}: only {', '.join(DS_KWARGS)} are allowed")
    local = path.parent / value["path"]
    return {**value, "path": str(local)} if local.is_dir() else dict(value)


def _examples(
    rows: datasets.Dataset, template: str, response: str, around: tuple[str, str], benchmark: Benchmark, where: str
) -> Iterator[Example]:
    """The examples of the rows; rows without an item that the template names are left out, with a warning."""
    short = 0
    named = {re.split(r"[.\[]", field)[0] for _, field, _, _ in string.Formatter().parse(template) if field}
    for row in rows:
        columns = {**row, **_derived(row)}
        if any(columns.get(name, "") is None for name in named):
            short += 1
            continue
        try:
            text = template.format_map({**columns, "task_def": ""}).strip()
            answer = columns[response]
        except KeyError as error:
            raise UserError(f"{where}: there is no column {error}, only {', '.join(sorted(columns))}") from error
        except IndexError:  # a question with fewer choices than the others
            short += 1
            continue
        except TypeError as error:
            raise UserError(f"{where}: a column cannot be indexed as the template does ({error})") from error
        answers = tuple(_text(item, response, where) for item in (answer if isinstance(answer, list) else [answer]))
        if not text or not answers or not all(item.strip() for item in answers):
            short += 1
            continue
        outputs = tuple(f"{around[0]}{item}{around[1]}" for item in answers)
        try:
            code = benchmark.code(row) if benchmark.code else Code("", "")
        except (LookupError, SyntaxError, TypeError, ValueError):  # its test tests nothing
            short += 1
            continue
        yield Example(text, outputs[0], outputs, *code)
    if short:
        warnings.warn(f"{where}: {short} of {len(rows)} rows are incomplete and left out", stacklevel=2)


def _derived(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that the registry's templates name and the data sets do not have as such."""
    derived: dict[str, Any] = {}
    if isinstance(row.get("input"), str) and (match := SUPER_NI.match(row["input"])):
        derived = {**match.groupdict(), "answer": row.get("output")}
    if isinstance(row.get("test_list"), list):
        derived["assertions"] = "\n".join(row["test_list"])
    return derived


def _text(value: Any, column: str, where: str) -> str:
    if isinstance(value, (dict, list)):
        raise UserError(f"{where}: response_field: the column {column} holds {type(value).__name__}s, not text")
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
