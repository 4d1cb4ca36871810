"""Examples as tokens, kept on disk by content: a run that reads the same examples again does not tokenise them again.

A file of the cache holds one task's examples in one mode. Its name is a hash of everything that the tokens follow from:
the tokenizer and its chat template, the texts, the instructions. A damaged file is made anew.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.batches import TokenTable
from t2l_jax.data.prompts import encode
from t2l_jax.data.tasks import Example
from t2l_jax.decoder.chat_template import end_of_turn
from t2l_jax.io.files import atomic_write
from t2l_jax.progress import progress_bar

FORMAT = 1  # part of the hash: to be raised when `encode` makes other tokens of the same texts
Job = tuple[Sequence[Example], Sequence[str]]  # examples of a task, and the instructions dealt out to them


def encode_all(tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Job], cache: Path) -> list[TokenTable]:
    """`prompts.encode` of each job, read from the folder `cache` where it is there, and put there where it is not."""
    tokens_from = fingerprint(tokenizer)
    tables = []
    with progress_bar() as progress:
        bar = progress.add_task("tokenising", total=len(jobs), rate="")
        for examples, instructions in jobs:
            path = cache / f"{_key(tokens_from, examples, instructions)}.npz"
            table = _read(path, len(examples))
            if table is None:
                table = TokenTable.of(encode(tokenizer, examples, instructions))
                _write(path, table)
            tables.append(table)
            progress.advance(bar)
    return tables


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides the tokens of a text: vocabulary, rules, chat template, and the token that ends a turn."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    parts = (FORMAT, type(tokenizer).__name__, rules, tokenizer.chat_template, end_of_turn(tokenizer))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _key(tokens_from: str, examples: Sequence[Example], instructions: Sequence[str]) -> str:
    texts = [[example.input, example.output] for example in examples]
    return hashlib.sha256(json.dumps([tokens_from, texts, list(instructions)]).encode()).hexdigest()


def _read(path: Path, count: int) -> TokenTable | None:
    """The table in a file; None where there is none, or one that is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            table = TokenTable(arrays["tokens"], arrays["starts"], arrays["prompts"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = len(table) == count and len(table.starts) == count + 1 and table.starts[-1] == len(table.tokens)
    return table if whole else None


def _write(path: Path, table: TokenTable) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, tokens=table.tokens, starts=table.starts, prompts=table.prompts)
    atomic_write(path, buffer.getvalue())
