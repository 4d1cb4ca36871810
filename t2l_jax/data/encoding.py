"""Tokenised examples, cached on disk by content.

A cache file holds one task's examples in one mode. Its name is a hash of everything that determines the tokens: the
tokenizer and its chat template, the texts, the instructions. A damaged file is replaced.
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

FORMAT = 1  # part of the hash: increment if `encode` tokenises the same texts differently
Job = tuple[Sequence[Example], Sequence[str]]  # examples of a task, and their instructions, assigned in turn


def encode_all(tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Job], cache: Path) -> list[TokenTable]:
    """`prompts.encode` each job, or read the result from the folder `cache` if it is there."""
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
    """A hash of what determines the tokens of a text: vocabulary, rules, chat template and end-of-turn token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    parts = (FORMAT, type(tokenizer).__name__, rules, tokenizer.chat_template, end_of_turn(tokenizer))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _key(tokens_from: str, examples: Sequence[Example], instructions: Sequence[str]) -> str:
    texts = [[example.input, example.output] for example in examples]
    return hashlib.sha256(json.dumps([tokens_from, texts, list(instructions)]).encode()).hexdigest()


def _read(path: Path, count: int) -> TokenTable | None:
    """The table in a file; None if the file is missing or damaged."""
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
