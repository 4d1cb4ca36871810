"""Every format against the arrays it was written from; files that are cut short or are not what they claim."""

import json
import struct

import flax.serialization
import gguf
import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from transformers.modeling_utils import _get_resolved_checkpoint_files

from t2l_jax.errors import UserError
from t2l_jax.io.flax_header import flax_tensors
from t2l_jax.io.gguf import gguf_tensors
from t2l_jax.io.readers import tensors, weight_files
from t2l_jax.io.safetensors_header import safetensors_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "model.embed_tokens.weight": RNG.normal(size=(12, 8)).astype(np.float32),
    "model.layers.0.self_attn.q_proj.weight": RNG.normal(size=(8, 8)).astype(np.float16),
    "model.layers.0.mlp.up_proj.weight": RNG.normal(size=(16, 8)).astype(ml_dtypes.bfloat16),
    "model.norm.weight": RNG.normal(size=8).astype(np.float32),
}


def flax_tree(arrays):
    """The arrays as Flax names and turns them."""
    tree = {}
    for name, array in arrays.items():
        *parents, last = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        matrix = "embedding" if "embed" in name else "kernel"
        inner[last if array.ndim == 1 else matrix] = array.T if array.ndim == 2 and matrix == "kernel" else array
    return tree


def read_all(found):
    """Name -> array as PyTorch keeps it, read in two parts."""
    result = {}
    for tensor in found:
        assert tensor.name not in result
        middle = tensor.shape[0] // 3
        array = np.concatenate([tensor.read(0, middle), tensor.read(middle, tensor.shape[0])])
        assert array.shape == tensor.shape
        result[tensor.name] = array.T if tensor.transposed else array
    return result


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_safetensors(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal(read_all(tensors(tmp_path)), ARRAYS)


def test_safetensors_written_by_torch(tmp_path):
    array = torch.randn(6, 5, dtype=torch.bfloat16)
    save_torch_file({"x": array}, tmp_path / "model.safetensors")
    found = read_all(tensors(tmp_path))["x"]
    np.testing.assert_array_equal(found.astype(np.float32), array.float().numpy())


def test_flax(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(flax_tree(ARRAYS)))
    assert_equal(read_all(tensors(tmp_path)), ARRAYS)


def test_flax_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(flax_tree(ARRAYS)))
    found = list(tensors(tmp_path))
    assert max(len(tensor.pieces) for tensor in found) == 10
    assert_equal(read_all(found), ARRAYS)


def test_flax_array_with_every_length_of_header(tmp_path):
    arrays = {f"x{size}": np.arange(size, dtype=np.float32) for size in (7, 1000, 70_000)}
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(flax.serialization.to_bytes(arrays))
    assert_equal(read_all(flax_tensors(file)), arrays)


@pytest.mark.parametrize("kind", ["safetensors", "msgpack"])
def test_shards(kind, tmp_path):
    weight_map, names = {}, list(ARRAYS)
    for number, shard in enumerate((names[:1], names[1:])):
        arrays = {name: ARRAYS[name] for name in shard}
        file = tmp_path / f"shard-{number}.{kind}"
        if kind == "safetensors":
            save_file(arrays, file)
        else:
            file.write_bytes(flax.serialization.to_bytes(flax_tree(arrays)))
        weight_map.update(dict.fromkeys(shard, file.name))
    stem = "model.safetensors" if kind == "safetensors" else "flax_model.msgpack"
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_equal(read_all(tensors(tmp_path)), ARRAYS)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q6_K", "BF16", "F16"])
def test_gguf_dequantises_row_by_row(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    values = RNG.normal(size=(6, 256)).astype(np.float32)
    if kind.name == "Q6_K":  # the package cannot write it: any bytes are six-bit numbers, the scale ends each block
        blocks = RNG.integers(0, 256, (6, 210), np.uint8)
        blocks[:, -2:] = np.asarray([0.01], np.float16).view(np.uint8)
    else:
        blocks = gguf.quants.quantize(values, kind)
    write_gguf(tmp_path / "model.gguf", {"blk.0.ffn_up.weight": (blocks, kind)})
    found = read_all(tensors(tmp_path))["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(found, gguf.quants.dequantize(blocks, kind))
    assert found.dtype == np.float32


def test_gguf_names(tmp_path):
    arrays = {"token_embd.weight": ARRAYS["model.embed_tokens.weight"], "blk.1.attn_q.bias": np.ones(8, np.float32)}
    write_gguf(tmp_path / "model.gguf", arrays)
    expected = {
        "model.embed_tokens.weight": ARRAYS["model.embed_tokens.weight"],
        "model.layers.1.self_attn.q_proj.bias": np.ones(8, np.float32),
    }
    assert_equal(read_all(gguf_tensors(tmp_path / "model.gguf")), expected)


def test_gguf_index_is_the_one_of_the_gguf_package(smollm2, gguf_parsed_once):
    file = next(smollm2.glob("*.gguf"))
    theirs = {tensor.data_offset: tensor for tensor in gguf.GGUFReader(file).tensors}
    ours = list(gguf_tensors(file))
    assert len(ours) == len(theirs)
    for tensor in ours:
        other = theirs[tensor.offset]
        assert (tensor.kind, tensor.num_bytes) == (other.tensor_type, other.n_bytes)
        assert list(tensor.shape) == list(reversed(other.shape))
    norm = next(tensor for tensor in ours if tensor.name == "model.norm.weight")
    np.testing.assert_array_equal(norm.read(0, 576), theirs[norm.offset].data)


def test_missing_weights_and_ambiguous_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no weights found; expected one of model\.safetensors, "):
        weight_files(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 GGUF files; name one of them: a\.gguf, b\.gguf"):
        weight_files(tmp_path)


def test_a_whole_file_comes_before_an_index_as_in_transformers(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}')
    assert weight_files(tmp_path) == [tmp_path / "other.safetensors"]
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    chosen, _ = _get_resolved_checkpoint_files(str(tmp_path), None, None, None, None, False)
    assert chosen == [str(tmp_path / "model.safetensors")]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": ["a.safetensors"]}}')
    with pytest.raises(UserError, match=r"index\.json: field weight_map"):  # a damaged folder, whatever is taken of it
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", r"index\.json: expected a JSON object"),
        ('{"weight_map": {}}', r"field weight_map is empty"),
        ('{"weight_map": 3}', r"field weight_map: must be a valid dictionary, got 3"),
        ('{"weight_map": null}', r"field weight_map"),
        ('{"weight_map": {"x": 3}}', r"field weight_map.*got 3"),
        ('{"weight_map": {"x": ["a.safetensors"]}}', r"field weight_map"),
        ('{"weight_map": {"x": null}}', r"field weight_map"),
        ('{"weight_map": {"x": ".."}}', r"names '\.\.', no"),
        ('{"weight_map": {"x": "/etc/passwd"}}', r"names '/etc/passwd', no"),
        ('{"weight_map": {"x": "a\\u0000.safetensors"}}', r"names 'a\\x00\.safetensors', no"),
        ('{"weight_map": {"x": "a.gguf"}}', r"names 'a\.gguf', no"),
        ('{"weight_map": {"x": "%s.safetensors"}}' % ("a" * 300), r"cannot be read: File name too long"),
        ("[" * 100_000, r"brackets nested too deeply"),
        ('{"weight_map": %s}' % ("7" * 5_000), r"a number of thousands of digits"),
        ("{", r"index\.json: not JSON"),
        ("{}", r"index\.json: field weight_map is missing"),
        ('{"weight_map": {"x": "gone.safetensors"}}', r"gone\.safetensors: named by .*index\.json but not there"),
        (
            '{"weight_map": {"x": "../../other.safetensors"}}',
            r"names '\.\./\.\./other\.safetensors', no",
        ),
    ],
)
def test_bad_index_is_refused(index, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        weight_files(tmp_path)


def write_every_format(folder):
    save_file(ARRAYS, folder / "whole.safetensors")
    (folder / "whole.msgpack").write_bytes(flax.serialization.to_bytes(flax_tree(ARRAYS)))
    write_gguf(folder / "whole.gguf", {"token_embd.weight": ARRAYS["model.embed_tokens.weight"]})
    return {
        folder / "whole.safetensors": safetensors_tensors,
        folder / "whole.msgpack": flax_tensors,
        folder / "whole.gguf": gguf_tensors,
    }


def test_files_cut_anywhere_are_refused(tmp_path):
    for file, read in write_every_format(tmp_path).items():
        whole = file.read_bytes()
        for length in [*range(0, len(whole) - 1, 13), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(UserError, match=rf"{file.name}: .*again"):
                read_all(read(file))


def test_files_of_noise_are_refused(tmp_path):
    for seed in range(20):
        noise = np.random.default_rng(seed).bytes(500)
        for name, read in (
            ("a.safetensors", safetensors_tensors),
            ("a.msgpack", flax_tensors),
            ("a.gguf", gguf_tensors),
        ):
            (tmp_path / name).write_bytes(noise)
            with pytest.raises(UserError, match=name):
                read_all(read(tmp_path / name))


def pack(*items):
    return b"".join(item if isinstance(item, bytes) else msgpack.packb(item) for item in items)


def flax_array(shape=(2,), dtype="float32", data=bytes(8)):
    """An array as Flax stores it."""
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb((shape, dtype, data))))


@pytest.mark.parametrize(
    "content",
    [
        flax_array(),  # no map around it
        pack(b"\x81", "x", 7),
        pack(b"\x81", "x", None),
        pack(b"\x81", "x", "text"),
        pack(b"\x81", "x", msgpack.ExtType(5, bytes(16))),
        pack(b"\x81", "x", msgpack.ExtType(1, b"")),
        pack(b"\x81", "x", msgpack.Timestamp(1)),
        pack(b"\x81", 7, flax_array()),
        pack(b"\x81", b"\xc0", flax_array()),
        pack(b"\x82", "x", flax_array(), "x", flax_array()),
        pack(b"\x81", "x", flax_array()) + b"more",
        pack(b"\x81", "x", flax_array(shape=(-2,))),
        pack(b"\x81", "x", flax_array(shape=(2.0,))),
        pack(b"\x81", "x", flax_array(shape=2)),
        pack(b"\x81", "x", flax_array(shape="ab")),
        pack(b"\x81", "x", flax_array(shape=(2**63, 2**63))),
        pack(b"\x81", "x", flax_array(dtype=7)),
        pack(b"\x81", "x", flax_array(dtype="object")),
        pack(b"\x81", "x", flax_array(data=bytes(9))),
        pack(b"\x81", "x", {"__msgpack_chunked_array__": True}),
        pack(b"\x81", "x", {"__msgpack_chunked_array__": True, "chunks": {}, "shape": {}}),
        pack(b"\xdf\xff\xff\xff\xff"),
    ],
)
def test_flax_trees_that_cannot_be_are_refused(content, tmp_path):
    (tmp_path / "x.msgpack").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.msgpack: ") as error:
        read_all(flax_tensors(tmp_path / "x.msgpack"))
    assert "\n" not in str(error.value)


def test_flax_files_with_flipped_bytes_are_refused_or_change_numbers_only(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    whole, rng = flax.serialization.to_bytes(flax_tree(ARRAYS)), np.random.default_rng(0)
    file, refused = tmp_path / "x.msgpack", 0
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 8)):
            data[place] = rng.choice([data[place] ^ 1, 0x81, 0x93, 0xC0, 0xC7, 0xDF, 0xFF])
        file.write_bytes(data)
        try:
            read_all(flax_tensors(file))
        except UserError:
            refused += 1
    assert refused > 100


def test_maps_nested_without_end_are_refused(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x81\xa1x" * 100_000)
    with pytest.raises(UserError, match="not a whole Flax msgpack file"):
        read_all(tensors(tmp_path))


def test_other_dtypes_are_refused_by_name(tmp_path):
    save_file({"x": np.arange(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensor x is 'I64'; only F64, F32"):
        read_all(tensors(tmp_path))
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes({"x": np.arange(3)}))
    with pytest.raises(UserError, match="array x is int64; only float64"):
        read_all(flax_tensors(tmp_path / "flax_model.msgpack"))


def test_header_that_lies_about_sizes_is_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(UserError, match="tensor x"):
        read_all(tensors(tmp_path))


def test_gguf_of_another_architecture_is_refused_by_name(tmp_path):
    write_gguf(tmp_path / "model.gguf", {"token_embd.weight": np.ones((2, 2), np.float32)}, arch="mamba")
    with pytest.raises(UserError, match="architecture 'mamba' is not supported; llama, gemma2"):
        read_all(tensors(tmp_path))
