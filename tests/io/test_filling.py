"""Parameters that are filled while their files are read, on one device, on several, and in two processes."""

import math
from functools import partial

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import convert
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_models import save_tiny

from experiments.benchmarks import loading
from t2l_jax.decoder.quantized import quantise
from t2l_jax.io import filling
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.sharding import make_mesh, param_sharding, path_of


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_every_format_gives_the_same_in_small_blocks(llama, tmp_path, monkeypatch):
    folder, model = llama
    config, params = load_base(resolve(folder))
    monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)  # 8 rows of 64: half a head
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    (tmp_path / "flax").mkdir()
    (tmp_path / "flax" / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "flax" / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(as_flax(model)))
    convert(model, tmp_path / "model.gguf")
    for source in ("shards", "flax", "model.gguf"):
        other_config, other_params = load_base(resolve(tmp_path / source))
        assert other_config.attention == config.attention
        assert_equal(other_params, params)
        assert math.isclose(other_config.norm_eps, config.norm_eps, rel_tol=1e-6)  # float32 in GGUF


def as_flax(model):
    """The parameters as transformers' Flax classes name and turn them."""
    flat = {}
    for name, tensor in model.state_dict().items():
        *parents, last = name.split(".")
        if "embed_tokens" in name:
            last = "embedding"
        elif tensor.ndim == 2:
            last, tensor = "kernel", tensor.T
        flat[(*parents, last)] = tensor.numpy()
    return flax.traverse_util.unflatten_dict(flat)


def test_matrices_stored_as_one_are_cut_in_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)  # 8 rows of 64
    model = save_tiny("phi 3", tmp_path)
    convert(model, tmp_path / "model.gguf")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for source in (tmp_path, tmp_path / "model.gguf"):
        layers = load_base(resolve(source))[1]["layers"]
        for fused, names, ends in (
            ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), (64, 96)),
            ("mlp.gate_up_proj", ("gate_proj", "up_proj"), (96,)),
        ):
            parts = np.split(np.stack([state[f"model.layers.{i}.{fused}.weight"] for i in range(4)]), ends, axis=1)
            for name, part in zip(names, parts, strict=True):
                assert_equal(layers[name]["kernel"], part.swapaxes(1, 2))


def test_parameters_are_created_where_they_belong(llama):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))

    def place(path):
        return NamedSharding(mesh, PartitionSpec(None, None, "model") if path.endswith("kernel") else PartitionSpec())

    config, sharded = load_base(resolve(llama[0]), sharding=place)
    assert_equal(sharded, load_base(resolve(llama[0]))[1])
    kernel = sharded["layers"]["gate_proj"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(config.num_layers, config.width, 12)}
    assert len(sharded["embedding"].addressable_shards) == 8


def save_wide(folder):
    """Models whose inputs are whole blocks of nf4: a matrix for each projection, several in one, and Flax's."""
    models = {
        name: save_tiny(name, folder / name, hidden_size=128, intermediate_size=128)
        for name in ("llama, biases", "phi 3")
    }
    flat = folder / "flax"
    flat.mkdir()
    (flat / "config.json").write_text((folder / "llama, biases" / "config.json").read_text())
    (flat / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(as_flax(models["llama, biases"])))
    return [folder / name for name in models] + [flat]


def quantised(params, kind):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: quantise(leaf, kind) if path_of(path).endswith("/kernel") else leaf, params
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_kernels_are_quantised_as_they_are_read(tmp_path, monkeypatch, kind):
    """Block by block, on one device and on several, from every layout: the same as from the whole kernels."""
    mesh = make_mesh(fsdp=2, tensor=2 if kind == "int8" else 1)  # o_proj has one block of nf4
    for source in save_wide(tmp_path):
        files = resolve(source)
        expected = quantised(load_base(files)[1], kind)
        monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)  # 8 rows of 64
        for place in (None, partial(param_sharding, mesh)):
            assert_near(load_base(files, sharding=place, base=kind)[1], expected)
        monkeypatch.undo()


def assert_near(ours, theirs):
    """Equal but for a rounding in the last digit of scales, and where that decides between two integers."""

    def compare(one, other):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.dtype == jnp.float32:
            np.testing.assert_allclose(one, other, rtol=1e-6)
        else:
            assert np.mean(np.asarray(one) != np.asarray(other)) < 1e-3

    jax.tree.map(compare, ours, theirs)


@pytest.mark.parametrize(("fsdp", "tensor"), [(4, 2), (1, 1), (8, 1)])
def test_every_device_gets_its_part(llama, tmp_path, monkeypatch, fsdp, tensor):
    """From rows and from columns of a file's matrices, whichever way round it keeps them."""
    mesh, flat = make_mesh(fsdp=fsdp, tensor=tensor), tmp_path / "flax"
    flat.mkdir()
    (flat / "config.json").write_text((llama[0] / "config.json").read_text())
    (flat / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(as_flax(llama[1])))
    expected = load_base(resolve(llama[0]))[1]
    monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)
    for source in (llama[0], flat):
        params = load_base(resolve(source), sharding=partial(param_sharding, mesh))[1]
        assert_equal(params, expected)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            assert leaf.sharding == param_sharding(mesh, path_of(path))


@pytest.mark.parametrize(("base", "processes"), [("native", 2), pytest.param("int8", 1, marks=pytest.mark.long)])
def test_loading_reads_what_the_devices_hold_and_needs_little_memory(tmp_path, base, processes):
    """Counted in processes of their own. As floats the model in 8 bits would take twice as much."""
    loading.write_model(tmp_path, 8, 1024)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    rows = loading.load(tmp_path, base, processes, devices=4)
    assert len(rows) == processes
    for row in rows:
        kept, peak = row["parameters, GB"], row["peak above the imports, GB"]
        assert kept == pytest.approx(size / 1e9 / processes / (1 if base == "native" else 1.5), rel=0.2)
        assert row["read, GB"] == pytest.approx(size / 1e9 / processes, rel=0.05, abs=0.01)
        assert peak < 1.2 * kept + 0.1  # what the programs themselves take shows in a model as small as this
