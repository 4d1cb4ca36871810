"""Headers of GGUF files: what is not in the file is not believed, and a model in parts is one model."""

import struct

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf

from t2l_jax.errors import UserError
from t2l_jax.io.gguf import gguf_tensors
from t2l_jax.io.gguf_header import read_index, split_parts
from t2l_jax.io.readers import tensors, weight_files

Kind = gguf.GGUFValueType
TENSOR = ("x", [4], 0, 0)  # name, sizes, type, offset


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key, kind, value=b""):
    """A field of metadata from its stored bytes."""
    return text(key) + struct.pack("<I", kind) + value


def write(file, fields=(), entries=(TENSOR,), counts=None, data=bytes(64)):
    """A file of stored fields and (name, sizes, type, offset) of tensors; `counts` may say something else."""
    out = struct.pack("<IIQQ", gguf.GGUF_MAGIC, 3, *(counts or (len(entries), len(fields)))) + b"".join(fields)
    for name, sizes, kind, offset in entries:
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    file.write_bytes(out + bytes(-len(out) % 32) + data)
    return file


def test_a_small_file_is_read(tmp_path):
    fields = [pair("general.alignment", Kind.UINT32, struct.pack("<I", 32)), pair("a", Kind.STRING, text("ö"))]
    found, stored = read_index(write(tmp_path / "x.gguf", fields, data=np.arange(16, dtype=np.float32).tobytes()))
    assert found == {"general.alignment": 32, "a": "ö"}
    np.testing.assert_array_equal(stored["x"].read(1, 3), [1, 2])


def array(item, count, value=b""):
    return pair("a", Kind.ARRAY, struct.pack("<IQ", item, count) + value)


ALIGNED = {size: [pair("general.alignment", Kind.UINT32, struct.pack("<I", size))] for size in (0, 3, 48, 2**31)}
BAD_FIELDS = {
    **{f"general.alignment is {size}": fields for size, fields in ALIGNED.items()},
    "general.alignment is 'x'": [pair("general.alignment", Kind.STRING, text("x"))],
    "an array of arrays": [array(Kind.ARRAY, 1, struct.pack("<IQ", Kind.UINT8, 0))],
    "2305843009213693952 bytes do not fit": [array(Kind.UINT32, 2**59)],
    "1152921504606846976 texts in 'a' do not fit": [array(Kind.STRING, 2**60)],
    "9223372036854775807 bytes do not fit": [pair("a", Kind.STRING, struct.pack("<Q", 2**63 - 1))],
    "9223372036854775814 bytes do not fit": [array(Kind.STRING, 1, struct.pack("<Q", 2**63 - 2))],
    "type 99, which is not known": [pair("a", 99, bytes(8))],
    "type 98, which is not known": [array(98, 1, bytes(8))],
    "key 'a' comes twice": [pair("a", Kind.UINT8, b"1")] * 2,
    "codec can't decode": [pair("a", Kind.STRING, struct.pack("<Q", 2) + b"\xff\xfe")],
}
BAD_TENSORS = {
    "300000000 dimensions": [("x", [4], 0, 0)],  # see below
    "has 0 dimensions": [("x", [], 0, 0)],
    "has 5 dimensions": [("x", [1, 1, 1, 1, 4], 0, 0)],
    "tensor 'x' is empty": [("x", [4, 0], 0, 0)],
    "ends inside tensor 'x'": [("x", [17], 0, 0)],
    "ends inside tensor 'y'": [("y", [2**62, 2**62, 2**62, 2**62], 0, 0)],
    "ends inside tensor 'z'": [("z", [4], 0, 2**64 - 1)],
    "'x' comes twice": [TENSOR, ("x", [4], 0, 32)],
    "overlaps another": [TENSOR, ("y", [4], 0, 8)],
    "rows of 33, no multiple of 32": [("x", [33], gguf.GGMLQuantizationType.Q8_0, 0)],
    "is Q8_1, which cannot be read; take another conversion": [("x", [32], gguf.GGMLQuantizationType.Q8_1, 0)],
    "is I32, which cannot be read": [("x", [4], gguf.GGMLQuantizationType.I32, 0)],
    "type 77, which is not known; take another conversion": [("x", [4], 77, 0)],
}


@pytest.mark.parametrize("message", BAD_FIELDS)
def test_metadata_that_cannot_be_is_refused(tmp_path, message):
    with pytest.raises(UserError, match=rf"x\.gguf: .*{message}.*again"):
        read_index(write(tmp_path / "x.gguf", BAD_FIELDS[message]))


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_tensors_that_cannot_be_are_refused(tmp_path, message):
    file = write(tmp_path / "x.gguf", entries=BAD_TENSORS[message])
    if message.startswith("3"):
        data = bytearray(file.read_bytes())
        data[24 + 9 : 24 + 13] = struct.pack("<I", 300_000_000)
        file.write_bytes(data)
    with pytest.raises(UserError, match=rf"x\.gguf: .*{message}"):
        read_index(file)


@pytest.mark.parametrize(("count", "what"), [((2**40, 0), "tensors"), ((0, 2**63), "metadata fields")])
def test_counts_are_compared_with_the_file_before_they_are_counted_to(tmp_path, count, what):
    with pytest.raises(UserError, match=f"{what} do not fit into it"):
        read_index(write(tmp_path / "x.gguf", counts=count))


def test_flipped_bytes_are_refused_or_change_names_and_numbers_only(tmp_path):
    file, rng = tmp_path / "x.gguf", np.random.default_rng(0)
    write_gguf(file, {"token_embd.weight": np.ones((4, 8), np.float32), "blk.0.attn_q.bias": np.ones(8, np.float32)})
    whole = file.read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole) - 160, rng.integers(1, 4)):
            data[place] = rng.choice([data[place] ^ 1, data[place] ^ 128, 0, 9, 255])
        file.write_bytes(data)
        try:
            for tensor in read_index(file)[1].values():
                tensor.read(0, tensor.shape[0])
        except UserError:
            refused += 1
    assert refused > 150


ARRAYS = {
    "token_embd.weight": np.arange(32, dtype=np.float32).reshape(4, 8),
    "blk.0.ffn_up.weight": np.ones((16, 8), np.float32),
    "output_norm.weight": np.arange(8, dtype=np.float32),
}


def write_split(folder, total=3):
    """A model in two parts, as llama.cpp splits it: the first has the metadata."""
    parts = (list(ARRAYS)[:1], list(ARRAYS)[1:])
    for number, (members, file) in enumerate(zip(parts, split_parts(folder / "m-00001-of-00002.gguf"), strict=True)):
        writer = gguf.GGUFWriter(file, "qwen2")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", total)
        for name in members:
            writer.add_tensor(name, ARRAYS[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / "m-00001-of-00002.gguf"


def test_a_model_in_parts_is_one_model(tmp_path):
    first = write_split(tmp_path)
    (tmp_path / "whole").mkdir()
    write_gguf(tmp_path / "whole" / "m.gguf", ARRAYS)
    whole = {tensor.name: tensor.read(0, tensor.shape[0]) for tensor in tensors(tmp_path / "whole")}
    for path in (first, tmp_path):
        assert weight_files(path) == [first]
        found = {tensor.name: tensor.read(0, tensor.shape[0]) for tensor in tensors(path)}
        assert found.keys() == whole.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, whole[name])


def test_parts_that_do_not_make_a_model_are_refused(tmp_path):
    first = write_split(tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    with pytest.raises(UserError, match=r"m-00002-of-00002\.gguf: part 2 of 2 of a model; give the first part"):
        list(gguf_tensors(second))
    second.rename(tmp_path / "other.gguf")
    with pytest.raises(UserError, match=r"m-00002-of-00002\.gguf: this part of m-00001-of-00002\.gguf is not there"):
        list(gguf_tensors(first))
    first.rename(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"its name must end in -00001-of-00002\.gguf"):
        list(gguf_tensors(tmp_path / "m.gguf"))
    (tmp_path / "m.gguf").rename(first)
    write_gguf(second, {"output.weight": np.ones((4, 8), np.float32)})
    with pytest.raises(UserError, match="not part 2 of 2 of m-00001"):
        list(gguf_tensors(first))
    with pytest.raises(UserError, match=r"its parts hold 3 tensors, split\.tensors\.count says 4"):
        list(gguf_tensors(write_split(tmp_path, total=4)))
    with pytest.raises(UserError, match=r"key split\.count is -1"):
        read_index(write(tmp_path / "x.gguf", [pair("split.count", Kind.INT32, struct.pack("<i", -1))]))
