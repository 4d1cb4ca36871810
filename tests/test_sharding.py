"""The mesh on 8 fake devices: a sharded decoder computes what an unsharded one does."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter, init_adapter
from t2l_jax.sharding import batch_sharding, make_mesh, param_sharding, replicated

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


def scores(params: dict[str, Any], tokens: jax.Array, adapter: Adapter) -> jax.Array:
    hidden, _ = Decoder(CONFIG).apply({"params": params}, tokens, adapter)
    return logits(CONFIG, params, hidden)


@pytest.mark.parametrize("model", [1, 2, 4])
def test_a_sharded_decoder_equals_the_unsharded_one(model: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(keys[0], (8, 2, 6), 0, CONFIG.vocab_size)
    params = jax.jit(Decoder(CONFIG).init)(keys[1], tokens)["params"]
    spec = CONFIG.lora_spec()
    adapter = jax.vmap(partial(init_adapter, spec=spec))(jax.random.split(keys[2], 8))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    expected = jax.jit(scores)(params, tokens, adapter)

    mesh = make_mesh(model=model)
    placed = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, param_sharding(mesh, path_of(path))), params
    )
    tokens, adapter = jax.device_put((tokens, adapter), batch_sharding(mesh))
    got = jax.jit(scores)(placed, tokens, adapter)
    assert mesh.shape == {"data": 8 // model, "model": model}
    assert len(got.sharding.device_set) == 8
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_each_device_holds_its_part_of_a_parameter() -> None:
    mesh = make_mesh(model=4)
    shapes = {
        "embedding": ((48, 24), (12, 24)),
        "head": ((48, 24), (12, 24)),
        "final_norm/scale": ((24,), (24,)),
        "layers/attn_norm/scale": ((2, 24), (2, 24)),
        "layers/q_norm/scale": ((2, 4), (2, 4)),
        "layers/q_proj/kernel": ((2, 24, 32), (2, 24, 8)),
        "layers/k_proj/bias": ((2, 16), (2, 4)),
        "layers/o_proj/kernel": ((2, 32, 24), (2, 8, 24)),
        "layers/o_proj/bias": ((2, 24), (2, 24)),
        "layers/up_proj/kernel": ((2, 24, 40), (2, 24, 10)),
        "layers/down_proj/kernel": ((2, 40, 24), (2, 10, 24)),
    }
    for path, (shape, part) in shapes.items():
        placed = jnp.zeros(shape, device=param_sharding(mesh, path))
        assert {shard.data.shape for shard in placed.addressable_shards} == {part}, path


def test_batches_are_split_by_task_and_the_rest_copied() -> None:
    mesh = make_mesh()
    assert batch_sharding(mesh).spec == PartitionSpec("data")
    assert replicated(mesh).is_fully_replicated
    assert jnp.zeros((16, 3), device=batch_sharding(mesh)).addressable_shards[0].data.shape == (2, 3)


def test_a_part_of_the_devices_makes_a_mesh() -> None:
    assert make_mesh(model=2, data=3).devices.size == 6


@pytest.mark.parametrize(("model", "data"), [(3, None), (0, None), (4, 3), (16, None), (1, 0)])
def test_a_mesh_that_does_not_fit_is_refused(model: int, data: int | None) -> None:
    with pytest.raises(UserError, match="8"):
        make_mesh(model=model, data=data)
