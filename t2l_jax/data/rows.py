"""The rows of a data set that a registry names: one of the hub, or files beside its metadata.yaml.

A registry is data from outside, and so are the data sets it names. Neither may reach further: rows come from the hub's
data sets or from below the folder of metadata.yaml, and from formats that hold data alone (no pickles, no archives).
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import datasets
from datasets.naming import camelcase_to_snakecase
from pydantic import Field

from t2l_jax.errors import Unreachable, UserError
from t2l_jax.io.files import cache_folder, open_file, os_errors_explained
from t2l_jax.io.locations import HTTP_ERROR
from t2l_jax.io.yaml_file import MAX_BYTES, parse_yaml
from t2l_jax.schema import Schema, Several, Text

FORMATS = ("arrow", "csv", "json", "parquet", "text")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
CARDS = ("README.md", ".huggingface.yaml")  # `datasets` takes the files of a local data set from these
WAITS = (1.0, 4.0, 16.0)  # seconds before each retry of a download
NETWORK = (ConnectionError, TimeoutError, HTTP_ERROR)
Loaded = TypeVar("Loaded")
Files = Text | Several[Text]


class Source(Schema, extra="forbid"):
    """The arguments of `datasets.load_dataset` that a registry may give."""

    path: Annotated[Text, Field(max_length=200)]
    name: Text | None = None
    split: Text | None = None
    data_files: Files | dict[str, Files] | None = None
    data_dir: Text | None = None
    revision: Text | None = None


def load_rows(source: Source, path: Path) -> datasets.Dataset:
    """The rows of a data set. `path` is the metadata.yaml that names it.

    Raises UserError that names that file if the data set cannot be loaded, or lies elsewhere than it may, and
    Unreachable if the network fails.
    """
    options, home = _options(source, path)
    offline = datasets.config.HF_HUB_OFFLINE
    config = datasets.DownloadConfig(local_files_only=offline)

    def load() -> Any:
        folder = str(cache_folder() / "datasets")
        builder = datasets.load_dataset_builder(**options, cache_dir=folder, download_config=config)
        _check_builder(builder, home, path)
        builder.download_and_prepare(download_config=config)
        return builder.as_dataset(split=source.split)

    try:
        rows = load() if offline or home else with_retries(load)
    except UserError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "check ds_kwargs"
        if offline and not home:
            advice = "it is not in the cache: run once with the network, without HF_HUB_OFFLINE"
        elif isinstance(error, NETWORK):
            advice = "the hub cannot be reached: try again later"
        kind = Unreachable if isinstance(error, NETWORK) and not offline else UserError
        raise kind(f"{path}: the data set {source.path} cannot be loaded ({first[:300]}): {advice}") from error
    if not isinstance(rows, datasets.Dataset):
        raise UserError(f"{path}: ds_kwargs names no split: choose among {', '.join(map(str, rows))}")
    return rows


def on_this_machine(source: Source, path: Path) -> bool:
    """True if the data set lies beside metadata.yaml, or the cache holds one of its name. Asks nothing of the hub."""
    *parents, last = source.path.split("/")
    folder = cache_folder() / "datasets" / "___".join([*parents, camelcase_to_snakecase(last)])
    return _options(source, path)[1] is not None or folder.is_dir()


def with_retries(load: Callable[[], Loaded], sleep: Callable[[float], None] = time.sleep) -> Loaded:
    """Call `load`, retrying after each of WAITS if the network or the server fails."""
    for wait in WAITS:
        try:
            return load()
        except NETWORK as error:
            status = getattr(getattr(error, "response", None), "status_code", 503)
            if status < 500 and status != 429:  # a retry does not help
                raise
        sleep(wait)
    return load()


def _options(source: Source, path: Path) -> tuple[dict[str, Any], Path | None]:
    """The arguments of `load_dataset_builder`, and the folder that must hold the files; None for one of the hub."""
    options = source.model_dump(mode="json", exclude={"split"}, exclude_none=True)
    for text in _texts([source.data_files, source.data_dir]):
        _check_relative(text, f"{path}: ds_kwargs")
    home = path.parent
    with os_errors_explained(path, "read"):
        folder = home / source.path
        if folder.is_dir():
            if not folder.resolve().is_relative_to(home.resolve()):
                raise UserError(f"{path}: ds_kwargs.path {source.path!r} lies outside {home}: move the data set there")
            for card in CARDS:
                _check_card(folder / card)
            return {**options, "path": str(folder)}, home
        if source.path in FORMATS:
            if source.data_files is None:
                raise UserError(f"{path}: ds_kwargs.path {source.path!r} is a format: name its files in data_files")
            return {**options, "data_dir": str(home / (source.data_dir or ""))}, home
        if not HUB_NAME.fullmatch(source.path):
            raise UserError(
                f"{path}: ds_kwargs.path {source.path!r} is neither a folder below {home} nor a data set of the hub"
            )
        if Path(source.path).exists():  # `datasets` would take that
            raise UserError(
                f"{path}: ds_kwargs.path {source.path!r} is here in the current directory, too: run from elsewhere"
            )
    return options, None


def _check_builder(builder: datasets.DatasetBuilder, home: Path | None, path: Path) -> None:
    """Raise UserError unless a data set has a known format and its files are the hub's, or below `home`."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in (*FORMATS, "cache"):
        raise UserError(f"{path}: the data set has the format {kind}: only {', '.join(FORMATS)} are read")
    files = [str(file) for some in (builder.config.data_files or {}).values() for file in some]
    hub = ("hf://datasets/", f"{datasets.config.HF_ENDPOINT}/datasets/")
    for file in files:
        inside = file.startswith(hub) if home is None else Path(file).resolve().is_relative_to(home.resolve())
        if not inside:
            place = "the hub's data sets" if home is None else home
            raise UserError(f"{path}: the data set reads {file}, which lies outside {place}")


def _check_card(card: Path) -> None:
    """Raise UserError if the card of a local data set names files elsewhere."""
    if not card.exists():
        return
    with open_file(card) as file:
        data = file.read(MAX_BYTES + 1)
    if card.suffix == ".md":
        header = re.match(rb"\s*---[\r\n]+(.*?)[\r\n]+---(?:[\r\n]|$)", data, re.DOTALL)
        if header is None:
            return
        data = header[1]
    configs = parse_yaml(data, str(card)).get("configs")
    for config in configs if isinstance(configs, list) else [configs]:
        if isinstance(config, dict):
            for text in _texts([config.get("data_files"), config.get("data_dir")]):
                _check_relative(text, f"{card}: configs")


def _texts(value: Any) -> Iterator[str]:
    """All texts in lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_relative(text: str, where: str) -> None:
    """Raise UserError unless the text is a path, or a pattern of paths, inside a data set."""
    if text.startswith(("/", "~")) or ":" in text or "\\" in text or ".." in PurePosixPath(text).parts:
        raise UserError(f"{where}: {text[:80]!r} must be a path inside the data set: no address, and no .. in it")
