"""Kernels in 8 and 4 bits against numpy, and a decoder with them against one with the same numbers as floats."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.decoder.quantized import BLOCK, LEVELS, Int8Kernel, Nf4Kernel, check_blocks, product, quantise
from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter, init_adapter, merge
from t2l_jax.sharding import batch_sharding, make_mesh, param_sharding, path_of, place_base

KINDS = ("int8", "nf4")
CONFIG = DecoderConfig(
    vocab_size=48,
    width=128,
    num_layers=2,
    mlp_width=256,
    attention=AttentionConfig(2, 2, 64, layers=(LayerAttention(window=3), LayerAttention()), qkv_bias=True),
)
QUANTISED = (Int8Kernel, Nf4Kernel)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def numbers(kind: str, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(The nearest numbers that a kernel [i, o] can have, the scale of each), as the definitions say."""
    if kind == "int8":
        scale = np.broadcast_to(np.abs(kernel).max(0) / np.float32(127), kernel.shape)
        return np.rint(kernel / scale) * scale, scale
    blocks = kernel.reshape(-1, BLOCK, kernel.shape[1])
    scale = np.broadcast_to(np.abs(blocks).max(1, keepdims=True), blocks.shape)
    nearest = np.abs(blocks[..., None] / scale[..., None] - np.float32(LEVELS)).argmin(-1)
    return tuple(x.reshape(kernel.shape) for x in (np.float32(LEVELS)[nearest] * scale, scale))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_becomes_the_nearest_number(kind):
    kernel = normal(2, 192, 5)
    got = quantise(jnp.asarray(kernel), kind).weights(jnp.float32)
    for ours, layer in zip(got, kernel, strict=True):
        expected, scale = numbers(kind, layer)
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        widest = 0.5 if kind == "int8" else (LEVELS[1] - LEVELS[0]) / 2
        assert np.all(np.abs(ours - layer) <= widest * scale + 1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 192), ("nf4", 4 + 32 / BLOCK)])
def test_bits_of_a_weight(kind, bits):
    kernel = quantise(jnp.asarray(normal(192, 5)), kind)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(kernel)) * 8 == bits * 192 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    kernel = normal(128, 3)
    kernel[:, 1] = 0
    got = quantise(jnp.asarray(kernel), kind).weights(jnp.float32)
    assert not got[:, 1].any()
    assert np.isfinite(got).all()


def test_the_scale_of_a_part_is_that_of_the_whole():
    kernel = jnp.asarray(normal(128, 3))
    whole, part = quantise(kernel, "int8"), quantise(kernel[:64], "int8", jnp.max(jnp.abs(kernel), axis=0))
    np.testing.assert_array_equal(part.values, whole.values[:64])
    np.testing.assert_array_equal(part.scale, whole.scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "matmul_dtype"), [("float32", None), ("float32", "bfloat16"), ("bfloat16", None)])
def test_product_and_gradient_are_those_of_the_numbers(kind, dtype, matmul_dtype):
    kernel = quantise(jnp.asarray(normal(128, 5)), kind)
    x, cotangent = jnp.asarray(normal(2, 3, 128, seed=1), dtype), jnp.asarray(normal(2, 3, 5, seed=2), dtype)
    out, backward = jax.vjp(lambda x: product(x, kernel, matmul_dtype), x)
    (slope,) = backward(cotangent)
    weights = np.asarray(kernel.weights(jnp.float32))
    exact = (dtype, matmul_dtype) == ("float32", None)
    for got, expected in (
        (out, np.float32(x) @ weights),
        (slope, np.float32(cotangent) @ weights.T),
    ):
        assert got.dtype == dtype
        np.testing.assert_allclose(np.float32(got), expected, atol=(1e-6 if exact else 1e-2) * np.abs(expected).max())


def parameters() -> dict[str, Any]:
    shapes = jax.eval_shape(Decoder(CONFIG).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.1), shapes)


def quantised(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """The parameters with kernels in 8 or 4 bits."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: quantise(leaf, kind) if path_of(path).endswith("/kernel") else leaf, params
    )


def as_floats(params: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(
        lambda leaf: leaf.weights(jnp.float32) if isinstance(leaf, QUANTISED) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, QUANTISED),
    )


def adapters() -> Adapter:
    """One for each of eight tasks."""
    spec = CONFIG.lora_spec(tuple(CONFIG.projection_widths()), rank=2)
    made = jax.vmap(partial(init_adapter, spec=spec))(jax.random.split(jax.random.key(1), 8))
    return jax.tree.map(lambda leaf: leaf + 0.02, made)


TOKENS = jax.random.randint(jax.random.key(2), (8, 1, 6), 0, CONFIG.vocab_size)


def loss(
    adapter: Adapter, params: dict[str, Any], tokens: jax.Array, mesh: Mesh | None = None, remat: str = "projections"
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each token after the one before it, and the logits."""
    hidden, _ = Decoder(CONFIG, mesh=mesh, remat=remat).apply({"params": params}, tokens, adapter)
    scores = logits(CONFIG, params, hidden)
    right = jnp.take_along_axis(jax.nn.log_softmax(scores[..., :-1, :]), tokens[..., 1:, None], axis=-1)
    return -jnp.mean(right), scores


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_is_that_of_the_numbers(kind):
    """Logits, loss, and the gradient with respect to adapters of all projections."""
    params = quantised(parameters(), kind)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    ours, expected = run(adapters(), params, TOKENS), run(adapters(), as_floats(params), TOKENS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), ours, expected)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * largest), ours[1], expected[1])
    (plain, _), _ = run(adapters(), parameters(), TOKENS)
    assert 1e-6 < abs(plain - ours[0][0]) < 0.05  # the loss next to that of the kernels as they were


def arrays_in(jaxpr) -> set[tuple[tuple[int, ...], str]]:
    """Shapes and types of all intermediates, those of inner programs included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {(variable.aval.shape, str(variable.aval.dtype)) for variable in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            found |= arrays_in(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("remat", ["none", "projections", "layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_one_layers_kernels_are_ever_floats(kind, remat):
    params = quantised(parameters(), kind)
    step = jax.grad(partial(loss, remat=remat), has_aux=True)
    found = arrays_in(jax.make_jaxpr(step)(adapters(), params, TOKENS).jaxpr)
    kernels = list(CONFIG.projection_widths().values())
    assert any((kernel, "float32") in found for kernel in kernels)  # the layers were looked into
    assert not any(((CONFIG.num_layers, *kernel), "float32") in found for kernel in kernels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_decoder_equals_the_unsharded_one_and_gathers_bytes(kind):
    params, mesh = quantised(parameters(), kind), make_mesh(fsdp=2, tensor=2)
    expected, slopes = jax.jit(jax.grad(loss, has_aux=True))(adapters(), params, TOKENS)[::-1]
    placed = place_base(mesh, params)
    tokens, adapter = jax.device_put((TOKENS, adapters()), batch_sharding(mesh))
    program = jax.jit(jax.grad(partial(loss, mesh=mesh), has_aux=True)).lower(adapter, placed, tokens).compile()
    gradient, got = program(adapter, placed, tokens)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient, slopes)
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", program.as_text())
    large = {kind for kind, shape in gathered if np.prod([int(n) for n in shape.split(",")]) >= 64 * 64}
    assert {"int8": "s8", "nf4": "u8"}[kind] in large
    rest = [shape for kind, shape in gathered if kind == "f32" and shape.endswith((",128", ",256"))]
    assert all(np.prod([int(n) for n in shape.split(",")]) <= CONFIG.vocab_size * CONFIG.width for shape in rest)


def test_each_device_holds_its_part_of_values_and_scales():
    mesh = make_mesh(fsdp=2, tensor=2)
    for path, shape, part in (
        ("layers/q_proj/kernel/values", (2, 128, 128), (2, 64, 64)),
        ("layers/q_proj/kernel/scale", (2, 128), (2, 64)),
        ("layers/down_proj/kernel/scale", (2, 128), (2, 64)),
        ("layers/down_proj/kernel/codes", (2, 128, 128), (2, 64, 64)),
        ("layers/down_proj/kernel/scales", (2, 4, 128), (2, 2, 64)),
        ("layers/q_norm/scale", (2, 64), (2, 64)),
    ):
        assert param_sharding(mesh, path).shard_shape(shape) == part, path


def test_blocks_that_would_be_cut_are_refused():
    widths = CONFIG.projection_widths()
    check_blocks(widths, "nf4", make_mesh(fsdp=2, tensor=2))
    check_blocks({"q_proj": (96, 96)}, "int8", make_mesh(fsdp=8))
    with pytest.raises(UserError, match=r"compute\.base: nf4 has a scale for 64 inputs, .* divide q_proj's 96: use in"):
        check_blocks({"q_proj": (96, 96)}, "nf4")
    with pytest.raises(UserError, match=r"mesh\.fsdp: 4 devices do not divide q_proj's 2 blocks of 64 inputs"):
        check_blocks(widths, "nf4", make_mesh(fsdp=4, tensor=2))
    with pytest.raises(UserError, match=r"mesh\.tensor: 4 devices do not divide o_proj's 2 blocks of 64 inputs"):
        check_blocks(widths, "nf4", make_mesh(fsdp=2, tensor=4))


def test_nothing_is_merged_into_them():
    with pytest.raises(UserError, match="cannot be merged into kernels of 8 or 4 bits: load the base LLM as native"):
        merge(quantised(parameters(), "int8"), adapters()[0])
