"""The mesh on 8 fake devices: a sharded decoder computes what an unsharded one does."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.lora import PROJECTIONS, Adapter, init_adapter
from t2l_jax.sharding import (
    LARGE,
    MeshConfig,
    batch_sharding,
    check_divides,
    constrain_adapter,
    make_mesh,
    param_axes,
    param_sharding,
    partition,
    place_base,
    replicated,
    shown,
    trained_sharding,
)
from t2l_jax.training import TrainState

KEY = jax.random.key(0)

CONFIG = DecoderConfig(
    vocab_size=48,
    width=24,
    num_layers=2,
    mlp_width=40,
    attention=AttentionConfig(
        num_heads=8,
        num_kv_heads=4,
        head_dim=4,
        layers=(LayerAttention(window=3), LayerAttention()),
        qkv_bias=True,
        qk_norm="head",
    ),
    tied_head=False,
)


def path_of(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)


def scores(params: dict[str, Any], tokens: jax.Array, adapter: Adapter, mesh: Mesh | None = None) -> jax.Array:
    hidden, _ = Decoder(CONFIG, mesh=mesh).apply({"params": params}, tokens, adapter)
    return logits(CONFIG, params, hidden)


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 4), (8, 1), (2, 2)])
def test_a_sharded_decoder_equals_the_unsharded_one(fsdp: int, tensor: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(keys[0], (8, 2, 6), 0, CONFIG.vocab_size)
    params = jax.jit(Decoder(CONFIG).init)(keys[1], tokens)["params"]
    spec = CONFIG.lora_spec(tuple(CONFIG.projection_widths()))
    adapter = jax.vmap(partial(init_adapter, spec=spec))(jax.random.split(keys[2], 8))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    expected = jax.jit(scores)(params, tokens, adapter)

    mesh = make_mesh(fsdp, tensor)
    placed = place_base(mesh, params)
    tokens, adapter = jax.device_put((tokens, adapter), batch_sharding(mesh))
    got = jax.jit(partial(scores, mesh=mesh))(placed, tokens, adapter)
    assert mesh.shape == {"data": 8 // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, expected, atol=1e-5)


def collectives(program: str) -> dict[str, list[str]]:
    """Kind -> result shapes of the collective operations of a compiled program."""
    found: dict[str, list[str]] = {}
    for shapes, kind in re.findall(r"= (\S+) (all-gather|all-reduce|all-to-all|reduce-scatter)\(", program):
        found.setdefault(kind, []).append(shapes)
    return found


@pytest.mark.parametrize("remat", ["projections", "none"])
def test_fsdp_gathers_weights_and_never_activations(remat: str) -> None:
    """Forward and backward: what is gathered is as large as a kernel of one layer, or the embedding."""
    mesh, decoder = make_mesh(fsdp=8), Decoder(CONFIG, remat=remat)
    tokens = jax.ShapeDtypeStruct((8, 2, 640), jnp.int32, sharding=batch_sharding(mesh))
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param_sharding(mesh, path_of(path))),
        shapes,
    )
    adapter = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.stack([x] * 8), init_adapter(KEY, CONFIG.lora_spec())))

    def loss(adapter: Adapter, params: Any, tokens: jax.Array) -> jax.Array:
        adapter = constrain_adapter(mesh, adapter)
        hidden, _ = decoder.clone(mesh=mesh).apply({"params": params}, tokens, adapter)
        return jnp.mean(hidden**2)

    program = jax.jit(jax.grad(loss)).lower(adapter, params, tokens).compile()
    found = collectives(program.as_text())
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"\[([\d,]+)\]", str(found))]
    assert len(found["all-gather"]) >= 8
    assert max(sizes) <= CONFIG.vocab_size * CONFIG.width  # a device's activations have 2 x 640 x 24 numbers
    assert "all-to-all" not in found


def test_each_device_holds_its_part_of_a_parameter() -> None:
    mesh = make_mesh(fsdp=2, tensor=4)
    shapes = {
        "embedding": ((48, 24), (12, 12)),
        "head": ((48, 24), (12, 12)),
        "final_norm/scale": ((24,), (24,)),
        "layers/attn_norm/scale": ((2, 24), (2, 24)),
        "layers/q_norm/scale": ((2, 4), (2, 4)),
        "layers/q_proj/kernel": ((2, 24, 32), (2, 12, 8)),
        "layers/k_proj/bias": ((2, 16), (2, 4)),
        "layers/o_proj/kernel": ((2, 32, 24), (2, 8, 12)),
        "layers/o_proj/bias": ((2, 24), (2, 24)),
        "layers/up_proj/kernel": ((2, 24, 40), (2, 12, 10)),
        "layers/down_proj/kernel": ((2, 40, 24), (2, 10, 12)),
    }
    for path, (shape, part) in shapes.items():
        placed = jnp.zeros(shape, device=param_sharding(mesh, path))
        assert {shard.data.shape for shard in placed.addressable_shards} == {part}, path


def test_a_large_head_of_a_hypernetwork_lies_on_several_devices_with_its_moments() -> None:
    mesh = make_mesh(tensor=4)
    big, small = (jax.ShapeDtypeStruct((64, width), jnp.float32) for width in (LARGE // 64, 8))
    params = {"head_q_proj": {"kernel": big, "bias_a": small}, "head_v_proj": {"kernel": small}}
    state = jax.eval_shape(lambda: TrainState(jnp.zeros((), jnp.int32), params, optax.adam(1.0).init(params)))
    placed = trained_sharding(mesh, state)
    divided = [path for path, place in jax.tree_util.tree_leaves_with_path(placed) if not place.is_fully_replicated]
    assert len(divided) == 3  # the kernel, and Adam's two moments of it
    assert {place.spec for place in jax.tree.leaves(placed)} == {PartitionSpec(), PartitionSpec("tensor", None)}


def test_batches_are_split_by_task_and_the_rest_copied() -> None:
    mesh = make_mesh(fsdp=2, tensor=2)
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).is_fully_replicated
    assert jnp.zeros((16, 3), device=batch_sharding(mesh)).addressable_shards[0].data.shape == (4, 3)


def test_no_array_is_divided_twice_by_one_axis_of_the_mesh() -> None:
    for path in (
        "embedding",
        "head",
        *(f"layers/{name}/{leaf}" for name in PROJECTIONS for leaf in ("kernel", "bias")),
    ):
        partition(*param_axes(path))
    with pytest.raises(ValueError, match="twice"):
        partition("heads", "mlp")
    with pytest.raises(ValueError, match="twice"):
        partition("task", "width")


def test_a_part_of_the_devices_makes_a_mesh() -> None:
    assert make_mesh(tensor=2, data=3).devices.size == 6


@pytest.mark.parametrize(("tensor", "data"), [(3, None), (0, None), (4, 3), (16, None), (1, 0)])
def test_a_mesh_that_does_not_fit_is_refused(tensor: int, data: int | None) -> None:
    with pytest.raises(UserError, match="8"):
        make_mesh(tensor=tensor, data=data)


@pytest.mark.parametrize(
    ("config", "tasks", "size", "shape"),
    [
        (MeshConfig(), 8, 0, (8, 1, 1)),
        (MeshConfig(), 6, 0, (6, 1, 1)),  # two devices are left out
        (MeshConfig(), 7, 0, (7, 1, 1)),
        (MeshConfig(fsdp=4), 16, 0, (2, 4, 1)),
        (MeshConfig(fsdp=2), 6, 0, (3, 2, 1)),
        (MeshConfig(fsdp=2, tensor=2), 4, 0, (2, 2, 2)),
        (MeshConfig(tensor=8), 1, 0, (1, 1, 8)),
        (MeshConfig(), 8, 25, (8, 1, 1)),  # of 100 bytes
        (MeshConfig(), 8, 26, (4, 2, 1)),
        (MeshConfig(), 8, 180, (1, 8, 1)),
        (MeshConfig(), 8, 500, (1, 8, 1)),  # more than a quarter, but it fits
        (MeshConfig(tensor=2), 8, 100, (2, 2, 2)),
    ],
)
def test_the_mesh_of_a_run(config: MeshConfig, tasks: int, size: int, shape: tuple[int, ...]) -> None:
    mesh = config.make(tasks, size, memory=100)
    assert tuple(mesh.shape.values()) == shape
    assert shown(mesh) == "data {} x fsdp {} x tensor {}".format(*shape)


@pytest.mark.parametrize(
    ("config", "tasks", "size", "message"),
    [
        (MeshConfig(fsdp=3), 6, 0, "8 devices cannot be split into groups of fsdp x tensor = 3 x 1"),
        (MeshConfig(fsdp=4), 6, 0, "6 tasks cannot be divided among 4 devices"),
        (
            MeshConfig(),
            8,
            800,
            r"0.0 GB on each of 8 devices .* at least 16 \(there are 8 devices\)",
        ),
        (MeshConfig(fsdp=1), 8, 100, "at least 2"),
    ],
)
def test_a_run_that_its_devices_cannot_do_is_refused(config: MeshConfig, tasks: int, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.make(tasks, size, memory=100)


def test_a_base_llm_that_answers_lies_on_devices_of_its_own_process(monkeypatch) -> None:
    own = jax.devices()[4:]
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    mesh = MeshConfig(fsdp=2, tensor=2).of_weights()
    assert mesh is not None
    assert (dict(mesh.shape), {*mesh.devices.flat}) == ({"data": 1, "fsdp": 2, "tensor": 2}, {*own})
    with pytest.raises(UserError, match="1 x 1 x 8 devices cannot be made of 4"):
        MeshConfig(tensor=8).of_weights()
    assert MeshConfig().of_weights() is None


def test_a_mesh_that_does_not_divide_the_heads_is_refused() -> None:
    check_divides(make_mesh(fsdp=2, tensor=4), CONFIG.axis_sizes())
    with pytest.raises(UserError, match=r"mesh\.tensor: 8 devices do not divide the base LLM's kv heads, 4"):
        check_divides(make_mesh(tensor=8), CONFIG.axis_sizes())
    with pytest.raises(UserError, match=r"mesh\.fsdp: 5 devices do not divide the base LLM's width, 24"):
        check_divides(make_mesh(fsdp=5, data=1), CONFIG.axis_sizes())
