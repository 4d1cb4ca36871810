"""Sums of adapters against merged weights and PEFT, compression against numpy's decomposition of the dense delta."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from peft_reference import random_adapter as for_llama
from peft_reference import save_llama
from transformers import LlamaForCausalLM

from t2l_jax.algebra import compress, concatenate, interpolate, mix, subtract
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter, LoraModule, LoraSpec, dense_delta, merge, stack

Q, V, DOWN = LoraModule("q_proj", 12, 8), LoraModule("v_proj", 12, 4), LoraModule("down_proj", 20, 12)
SPEC = LoraSpec((Q, V), num_layers=3, rank=2, alpha=6.0)
OTHER = LoraSpec((V, DOWN), num_layers=3, rank=5, alpha=3.0, rslora=False)


def random_adapter(spec: LoraSpec = SPEC, batch: tuple[int, ...] = (), seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    weights = {
        name: {side: jnp.asarray(rng.standard_normal((*batch, *shape), np.float32)) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    return Adapter(weights, spec)


def deltas(adapter: Adapter) -> dict[str, np.ndarray]:
    """What the adapter adds to each kernel, in float64."""
    pairs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), adapter.weights)
    return {name: adapter.spec.scale * np.swapaxes(pair["b"] @ pair["a"], -1, -2) for name, pair in pairs.items()}


def test_a_mix_is_the_sum_of_the_factors():
    one, two = random_adapter(seed=1), random_adapter(seed=2)
    mixed = mix([one, two], [0.25, 2.0])
    assert mixed.spec == SPEC
    for name, pair in mixed.weights.items():
        for side, array in pair.items():
            expected = 0.25 * np.asarray(one.weights[name][side]) + 2 * np.asarray(two.weights[name][side])
            np.testing.assert_allclose(array, expected, rtol=1e-6)
    # It is not the sum of the deltas: every B meets every A.
    summed = concatenate([one, two], [0.25, 2.0])
    assert np.abs(deltas(mixed)["q_proj"] - deltas(summed)["q_proj"]).max() > 1


def test_an_interpolation_has_both_ends_and_the_middle():
    one, two = random_adapter(seed=1), random_adapter(seed=2)
    jax.tree.map(np.testing.assert_array_equal, interpolate(one, two, 0.0), one)
    jax.tree.map(np.testing.assert_array_equal, interpolate(one, two, 1.0), two)
    middle = interpolate(one, two, 0.5).weights["v_proj"]["b"]
    np.testing.assert_allclose(middle, (one.weights["v_proj"]["b"] + two.weights["v_proj"]["b"]) / 2, rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_concatenation_is_the_exact_sum_of_the_deltas(batch):
    one, two = random_adapter(batch=batch, seed=1), random_adapter(OTHER, batch, seed=2)
    joined = concatenate([one, two], [0.5, -1.5])
    assert joined.spec == LoraSpec((Q, V, DOWN), num_layers=3, rank=7, alpha=7.0, rslora=False)
    assert joined.batch_shape == batch
    assert {name: pair["b"].shape[len(batch) :] for name, pair in joined.weights.items()} == {
        name: shapes["b"] for name, shapes in joined.spec.shapes().items()
    }
    first, second = deltas(one), deltas(two)
    expected = {
        "q_proj": 0.5 * first["q_proj"],
        "v_proj": 0.5 * first["v_proj"] - 1.5 * second["v_proj"],
        "down_proj": -1.5 * second["down_proj"],
    }
    for name, delta in deltas(joined).items():
        np.testing.assert_allclose(delta, expected[name], rtol=0, atol=1e-5)


def test_a_concatenation_merges_as_its_parts_do():
    config = DecoderConfig(7, 12, 3, 20, AttentionConfig(2, 1, 4, layers=(LayerAttention(),) * 3))
    specs = [config.lora_spec(("q_proj", "v_proj"), rank=3), config.lora_spec(("v_proj", "up_proj"), 2, 5.0, False)]
    adapters = [jax.tree.map(lambda x: 0.1 * x, random_adapter(spec, seed=i)) for i, spec in enumerate(specs)]
    rng = np.random.default_rng(3)
    layers = {
        name: {"kernel": jnp.asarray(rng.standard_normal((3, *widths), np.float32))}
        for name, widths in config.projection_widths().items()
    }
    one_by_one = merge(merge({"layers": layers}, adapters[0]), adapters[1])
    at_once = merge({"layers": layers}, concatenate(adapters, [1.0, 1.0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), at_once, one_by_one)
    back = merge(at_once, concatenate(adapters, [-1.0, -1.0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), back, {"layers": layers})


def test_an_adapter_less_itself_is_nothing():
    one, two = random_adapter(seed=1), random_adapter(seed=2)
    assert all(np.abs(delta).max() < 1e-5 for delta in deltas(subtract(one, one)).values())
    for name, delta in deltas(subtract(one, two)).items():
        np.testing.assert_allclose(delta, deltas(one)[name] - deltas(two)[name], rtol=0, atol=1e-5)


def best(delta: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """numpy's closest matrix of a rank, and the square of its distance."""
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], float((s[rank:] ** 2).sum())


@pytest.mark.parametrize("rank", [1, 3, 6, 7])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_compression_is_the_best_approximation(batch, rank):
    adapter = concatenate([random_adapter(batch=batch, seed=1), random_adapter(OTHER, batch, seed=2)], [1.0, 1.0])
    smaller, error = compress(adapter, rank)
    assert (smaller.spec.rank, smaller.spec.scale) == (rank, 1.0)
    assert smaller.batch_shape == error.shape == batch
    given, found = deltas(adapter), deltas(smaller)
    whole, lost = np.zeros(batch), np.zeros(batch)
    for name, delta in given.items():
        for index in np.ndindex(*batch, 3):
            expected, squared = best(delta[index], rank)
            np.testing.assert_allclose(found[name][index], expected, rtol=0, atol=2e-4)
            lost[index[:-1]] += squared
            whole[index[:-1]] += (delta[index] ** 2).sum()
    np.testing.assert_allclose(error, np.sqrt(lost / whole), rtol=1e-4, atol=1e-6)
    assert (np.asarray(error) > 0.1).all() if rank < 3 else (np.asarray(error) < 0.9).all()


def test_a_compression_to_the_rank_that_is_there_is_exact():
    one = random_adapter(seed=1)
    twice = concatenate([one, one], [0.5, 0.5])
    smaller, error = compress(twice, 2)
    assert float(error) < 1e-6
    for name, delta in deltas(smaller).items():
        np.testing.assert_allclose(delta, deltas(one)[name], rtol=0, atol=1e-4)
    a, b = (np.linalg.norm(smaller.weights["q_proj"][side]) for side in "ab")
    assert a == pytest.approx(b, rel=1e-5)  # neither is small beside the other


def test_nothing_is_compressed_to_nothing():
    nothing, error = compress(jax.tree.map(jnp.zeros_like, random_adapter()), 1)
    assert float(error) == 0
    assert not any(np.asarray(delta).any() for delta in dense_delta(nothing).values())


def test_the_delta_itself_is_never_made():
    """The largest array is a factor: the width of the delta is in no two axes of one."""
    spec = LoraSpec((LoraModule("q_proj", 512, 512),), num_layers=2, rank=4)
    jaxpr = jax.make_jaxpr(lambda adapter: compress(adapter, 2))(random_adapter(spec))
    assert max(var.aval.size for equation in jaxpr.eqns for var in equation.outvars) <= 2 * 512 * 4


def test_sums_in_16_bits_are_made_in_32():
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_adapter())
    joined = concatenate([halves, random_adapter(seed=1)], [1.0, 1.0])
    assert {leaf.dtype for leaf in jax.tree.leaves(joined)} == {jnp.dtype("float32")}
    assert compress(halves, 1)[0].weights["q_proj"]["a"].dtype == jnp.float32
    assert mix([halves, halves], [0.5, 0.5]).weights["q_proj"]["a"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mix([], []), "one weight each, got 0 adapters"),
        (lambda: concatenate([random_adapter()], [1.0, 2.0]), "got 1 adapters and 2 weights"),
        (lambda: mix([random_adapter()], [float("nan")]), "finite number, got nan"),
        (lambda: mix([random_adapter(), random_adapter(OTHER)], [1.0, 1.0]), "and modules is .*: concatenate them"),
        (
            lambda: mix([random_adapter(), random_adapter(LoraSpec((Q, V), 3, 2, alpha=7.0))], [1.0, 1.0]),
            r"and alpha is 6\.0 in one and 7\.0 in another: concatenate them",
        ),
        (
            lambda: mix([random_adapter(), random_adapter(batch=(2,))], [1.0, 1.0]),
            r"batches of different shapes, \(\) and \(2,\): index them",
        ),
        (
            lambda: concatenate([random_adapter(batch=(3,)), random_adapter(OTHER, (2,))], [1.0, 1.0]),
            r"batches of different shapes, \(3,\) and \(2,\)",
        ),
        (
            lambda: subtract(random_adapter(), random_adapter(LoraSpec((Q, V), num_layers=4, rank=2))),
            "different base models: one has 3 layers, another 4",
        ),
        (
            lambda: subtract(random_adapter(), random_adapter(LoraSpec((LoraModule("v_proj", 12, 6),), 3))),
            "different base models: v_proj is 12 -> 4 in one and 12 -> 6 in another",
        ),
        (lambda: compress(random_adapter(), 0), "to a rank from 1 to that, not 0"),
        (lambda: compress(random_adapter(), 3), "of rank 2 is compressed to a rank from 1 to that, not 3"),
    ],
)
def test_what_cannot_be_added_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_batches_are_mixed_adapter_by_adapter():
    one, two = [stack([random_adapter(seed=seed), random_adapter(seed=seed + 1)]) for seed in (1, 5)]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        mix([one, two], [0.3, 0.7])[1],
        mix([one[1], two[1]], [0.3, 0.7]),
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_peft_adds_adapters_to_the_same_deltas(tmp_path, method):
    save_llama(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    modules = (LoraModule("q_proj", 32, 32), LoraModule("v_proj", 32, 16))
    spec = LoraSpec(modules, config["num_hidden_layers"], rank=3, alpha=4.0)
    adapters = [for_llama(spec, seed) for seed in range(2)]
    for name, adapter in zip("xy", adapters, strict=True):
        save_peft(adapter, tmp_path / name)
    model = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "x", "x")
    model.load_adapter(tmp_path / "y", "y")
    options = {"svd_rank": 4} if method == "svd" else {}
    model.add_weighted_adapter(["x", "y"], [0.5, 1.5], "both", combination_type=method, **options)
    ours = concatenate(adapters, [0.5, 1.5])
    if method == "svd":
        ours, _ = compress(ours, 4)
    for layer, block in enumerate(model.base_model.model.model.layers):
        for name, delta in deltas(ours).items():
            theirs = getattr(block.self_attn, name).get_delta_weight("both").detach().numpy().T
            np.testing.assert_allclose(delta[layer], theirs, rtol=0, atol=1e-5)
