"""The cache of tokens: the same tokens with it as without, by content, and whatever is in its files."""

import copy

import numpy as np
import pytest

from t2l_jax.data import encoding
from t2l_jax.data.encoding import encode_all, fingerprint
from t2l_jax.data.prompts import encode
from t2l_jax.data.tasks import Example
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve

EXAMPLES = tuple(Example(text, text.upper(), (text,)) for text in ("one", "two words", "three"))
JOBS = [(EXAMPLES, ()), (EXAMPLES, ("Shout.", "In capitals.")), ((), ())]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(resolve(smollm2))


@pytest.fixture
def encoded(monkeypatch):
    """The jobs that were not in the cache."""
    calls = []

    def look(tokenizer, examples, instructions):
        calls.append((examples, instructions))
        return encode(tokenizer, examples, instructions)

    monkeypatch.setattr(encoding, "encode", look)
    return calls


def assert_right(tables, tokenizer):
    for table, job in zip(tables, JOBS, strict=True):
        found = [[list(part) for part in table[index]] for index in range(len(table))]
        assert found == [[list(part) for part in example] for example in encode(tokenizer, *job)]


def test_tokens_are_made_once(tokenizer, encoded, tmp_path):
    for _ in range(2):
        assert_right(encode_all(tokenizer, JOBS, tmp_path / "tokens"), tokenizer)
    assert encoded == JOBS
    assert len(list((tmp_path / "tokens").iterdir())) == len(JOBS)


def test_whatever_changes_the_tokens_is_another_entry(tokenizer, encoded, tmp_path):
    other = copy.copy(tokenizer)
    other.chat_template = tokenizer.chat_template + "And then:"
    jobs = [*JOBS[:2], (EXAMPLES[:2], ()), (EXAMPLES, ("In capitals.", "Shout."))]
    for each in (tokenizer, other):
        encode_all(each, jobs, tmp_path)
    assert len(encoded) == 2 * len(jobs) == len(list(tmp_path.iterdir()))
    assert fingerprint(other) != fingerprint(tokenizer)


@pytest.mark.parametrize("damage", ["cut", "empty", "pickled", "other arrays", "short"])
def test_a_damaged_file_is_made_anew(tokenizer, encoded, tmp_path, damage):
    encode_all(tokenizer, JOBS[:1], tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickled":
        np.savez(path, tokens=np.asarray([{}], object), starts=np.zeros(4), prompts=np.zeros(3))
    elif damage == "other arrays":
        np.savez(path, tokens=np.zeros(3))
    else:
        np.savez(path, tokens=np.zeros(3, np.int32), starts=np.asarray([0, 3]), prompts=np.asarray([1]))
    assert_right([*encode_all(tokenizer, JOBS[:1], tmp_path), *encode_all(tokenizer, JOBS[1:], tmp_path)], tokenizer)
    assert encoded[:2] == [JOBS[0], JOBS[0]]
    assert path.read_bytes() == whole
