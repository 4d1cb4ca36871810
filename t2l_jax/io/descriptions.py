"""What a published hypernetwork was trained on, in words: the file `descriptions.json.gz` of its folder.

    {"trained": ["Answer with the last word.", ...], "examples": [{"description": ..., "input": ...}, ...]}

`trained` has one description of each training task, `examples` what to show to somebody who has no idea yet.
"""

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Annotated

from pydantic import Field

from t2l_jax.errors import UserError
from t2l_jax.io.files import open_file, os_errors_explained, parse_json
from t2l_jax.schema import Schema, Several, Text, checked

FILE = "descriptions.json.gz"
MOST_TASKS = 4096
MOST_BYTES = 1 << 24


class ExampleTask(Schema):
    """A description to try, and an input for the model that has its adapter."""

    description: Text
    input: Text


class Descriptions(Schema):
    """What the file holds."""

    trained: Annotated[Several[Text], Field(max_length=MOST_TASKS)] = ()
    examples: Annotated[Several[ExampleTask], Field(max_length=64)] = ()


NONE = Descriptions()


def write(folder: Path, descriptions: Descriptions) -> None:
    """Write the file, unless there is nothing to say.

    It has as many of the training tasks' descriptions, evenly spaced, as MOST_BYTES have room for.
    """
    if descriptions != NONE:
        room = MOST_BYTES - len(_packable(descriptions.model_copy(update={"trained": ("",)})))
        sizes = [len(json.dumps(text, ensure_ascii=False).encode()) + 2 for text in descriptions.trained]
        evenly = ([index * len(sizes) // most for index in range(most)] for most in range(len(sizes), 0, -1))
        kept = next((rows for rows in evenly if sum(sizes[row] for row in rows) <= room), [])
        descriptions = descriptions.model_copy(update={"trained": tuple(descriptions.trained[row] for row in kept)})
        (folder / FILE).write_bytes(gzip.compress(_packable(descriptions), mtime=0))


def _packable(descriptions: Descriptions) -> bytes:
    return json.dumps(descriptions.model_dump(), indent=0, ensure_ascii=False).encode()


def read(folder: Path) -> Descriptions:
    """What the file of a published folder holds; nothing, if it has none. Raises UserError if it is damaged."""
    path = folder / FILE
    if not path.exists():
        return NONE
    with os_errors_explained(path, "read"), open_file(path) as file:
        packed = file.read(MOST_BYTES)
    try:
        with gzip.open(io.BytesIO(packed)) as unpacked:
            data = unpacked.read(MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}): fetch the whole folder again") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: has more than {MOST_BYTES:,} bytes: fetch the whole folder again")
    return checked(Descriptions, parse_json(data, str(path)), str(path))
