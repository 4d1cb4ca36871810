"""Headers of safetensors files against the library: what it refuses is refused, by name; the rest reads alike."""

import json
import struct

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load, save

from t2l_jax.errors import UserError
from t2l_jax.io.safetensors_header import load_tensors, safetensors_tensors

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(file, header, data=bytes(8), length=None):
    """A file of any header: an object, or text."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def test_whole_files_are_read(tmp_path):
    (tmp_path / "x").write_bytes(save(ARRAYS, metadata={"format": "pt"}))
    found = load_tensors(tmp_path / "x")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


BAD = {
    "shape null": {"x": GOOD | {"shape": [None]}},
    "shape a number": {"x": GOOD | {"shape": 2}},
    "shape of floats": {"x": GOOD | {"shape": [2.0]}},
    "shape of booleans": {"x": GOOD | {"shape": [True, 2]}},
    "shape negative": {"x": GOOD | {"shape": [-2]}},
    "shape beyond memory": {"x": GOOD | {"shape": [2**31, 2**31, 2**31]}},
    "shape of many ones": {"x": GOOD | {"shape": [1] * 100 + [2]}},
    "offsets empty": {"x": GOOD | {"data_offsets": []}},
    "offsets a text": {"x": GOOD | {"data_offsets": "08"}},
    "three offsets": {"x": GOOD | {"data_offsets": [0, 4, 8]}},
    "offsets negative": {"x": GOOD | {"data_offsets": [-8, 0]}},
    "offsets turned": {"x": GOOD | {"data_offsets": [8, 0]}},
    "offsets beyond 64 bits": {"x": GOOD | {"data_offsets": [0, 2**64]}},
    "offsets and shape differ": {"x": GOOD | {"shape": [3]}},
    "a gap at the start": {"x": GOOD | {"shape": [1], "data_offsets": [4, 8]}},
    "a gap at the end": {"x": GOOD | {"shape": [1], "data_offsets": [0, 4]}},
    "overlap": {"x": GOOD, "y": GOOD},
    "dtype a number": {"x": GOOD | {"dtype": 7}},
    "dtype unknown": {"x": GOOD | {"dtype": "F31"}},
    "dtype missing": {"x": {"shape": [2], "data_offsets": [0, 8]}},
    "entry a list": {"x": [1]},
    "entry null": {"x": None},
    "header a list": [1],
    "header a number": "7",
    "no tensors, but data": {},
    "a name twice": '{"x": %s, "x": %s}' % ((json.dumps(GOOD),) * 2),
    "a thousand brackets": "[" * 100_000,
    "a number of 5,000 digits": '{"x": %s}' % ("7" * 5000),
    "not UTF-8": '{"x": "\udcff"}',
    "cut": '{"x": {"dtype": ',
}

LENIENT = ("shape of many ones", "a name twice")  # NumPy refuses the one, the library takes the last of the other


@pytest.mark.parametrize("name", BAD)
def test_damaged_headers_are_refused_as_the_library_does(tmp_path, name):
    header = BAD[name]
    file = tmp_path / "x.safetensors"
    if isinstance(header, str):
        text = header.encode(errors="surrogateescape")
        file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    else:
        write(file, header)
    if name not in LENIENT:
        with pytest.raises(safetensors.SafetensorError):
            load(file.read_bytes())
    with pytest.raises(UserError, match=r"x\.safetensors") as error:
        safetensors_tensors(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
def test_lengths_of_headers_are_compared_with_the_file(tmp_path, length):
    write(tmp_path / "x", {"x": GOOD}, length=length)
    with pytest.raises(UserError, match="damaged"):
        safetensors_tensors(tmp_path / "x")


def test_flipped_bytes_are_refused_or_change_numbers_only(tmp_path):
    whole, rng = save(ARRAYS), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            data[place] = rng.choice([data[place] ^ 1, 0, 0x22, 0x2C, 0x5D, 0x30, 0xFF])
        (tmp_path / "x").write_bytes(data)
        try:
            found = load_tensors(tmp_path / "x")
        except UserError:
            refused += 1
        else:
            theirs = load(bytes(data))
            assert {name: array.shape for name, array in found.items()} == {n: a.shape for n, a in theirs.items()}
    assert refused > 200
