"""The algebra of adapters against numpy loops over layers, tasks and rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.lora import (
    PROJECTIONS,
    Adapter,
    LoraModule,
    LoraSpec,
    delta_norms,
    dense_delta,
    init_adapter,
    lora_delta,
    merge,
    stack,
)

Q, V, DOWN = LoraModule("q_proj", 12, 8), LoraModule("v_proj", 12, 4), LoraModule("down_proj", 20, 12)
SPEC = LoraSpec((Q, V, DOWN), num_layers=3, rank=2, alpha=6.0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def random_adapter(spec: LoraSpec = SPEC, batch: tuple[int, ...] = (), seed: int = 0) -> Adapter:
    weights = {
        name: {side: jnp.asarray(normal(*batch, *shape, seed=seed)) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    return Adapter(weights, spec)


def test_equal_sets_of_modules_are_equal_specs():
    assert LoraSpec((DOWN, V, Q), 3) == LoraSpec((Q, V, DOWN), 3)
    assert LoraSpec((DOWN, V, Q), 3).names == ("q_proj", "v_proj", "down_proj")
    modules = tuple(LoraModule(name, 4, 4) for name in reversed(PROJECTIONS))
    assert LoraSpec(modules, 1).names == tuple(PROJECTIONS)
    assert hash(LoraSpec((DOWN, Q), 3)) == hash(LoraSpec((Q, DOWN), 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": (LoraModule("lm_head", 4, 4),)}, "cannot target 'lm_head'"),
        ({"modules": (Q, Q)}, "each target module once"),
        ({"modules": ()}, "at least one"),
        ({"rank": 0}, "above zero"),
        ({"num_layers": 0}, "above zero"),
        ({"alpha": 0.0}, "above zero"),
    ],
)
def test_a_spec_that_makes_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        LoraSpec(**{"modules": (Q,), "num_layers": 3, **arguments})


def test_scale():
    assert LoraSpec((Q,), 1, rank=8, alpha=16, rslora=False).scale == 2.0
    assert LoraSpec((Q,), 1, rank=8, alpha=16, rslora=True).scale == pytest.approx(5.657, abs=1e-3)  # the paper's
    assert LoraSpec((Q,), 1, rank=1, alpha=3, rslora=True).scale == 3.0


def test_size_of_the_papers_lora_on_mistral_7b():
    spec = LoraSpec((LoraModule("q_proj", 4096, 4096), LoraModule("v_proj", 4096, 1024)), num_layers=32, rank=8)
    assert spec.size == 32 * 8 * (4096 + 4096 + 4096 + 1024) == 3_407_872


def test_size_is_the_sum_of_the_shapes():
    assert SPEC.size == sum(math.prod(shape) for sides in SPEC.shapes().values() for shape in sides.values())
    assert SPEC.shapes()["down_proj"] == {"a": (3, 2, 20), "b": (3, 12, 2)}


def test_init_is_uniform_a_and_zero_b():
    spec = LoraSpec((LoraModule("q_proj", 400, 30), LoraModule("v_proj", 100, 30)), num_layers=8, rank=16)
    adapter = init_adapter(jax.random.key(0), spec)
    for name, width in (("q_proj", 400), ("v_proj", 100)):
        a, bound = np.asarray(adapter.weights[name]["a"]), 1 / math.sqrt(width)
        assert np.abs(a).max() <= bound
        assert np.abs(a).max() == pytest.approx(bound, rel=0.01)
        assert a.mean() == pytest.approx(0, abs=0.02 * bound)
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not np.asarray(adapter.weights[name]["b"]).any()
    assert {name: {side: x.shape for side, x in w.items()} for name, w in adapter.weights.items()} == spec.shapes()
    assert all(not np.asarray(delta).any() for delta in dense_delta(adapter).values())
    first, second = adapter.weights["q_proj"]["a"][:, :, :100], adapter.weights["v_proj"]["a"]
    assert not np.allclose(first / first.max(), second / second.max())  # modules draw their own numbers
    assert init_adapter(jax.random.key(0), spec, jnp.bfloat16).weights["v_proj"]["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize("batch", [(), (3,), (3, 2)], ids=["one", "per-task", "per-task-and-row"])
def test_lora_delta_is_a_loop_over_tasks(batch):
    x, a, b = normal(3, 2, 5, 12), normal(*batch, 4, 12, seed=1), normal(*batch, 6, 4, seed=2)
    expected = np.zeros((3, 2, 5, 6), np.float32)
    for task in range(3):
        for row in range(2):
            index = (task, row)[: len(batch)]
            for position in range(5):
                expected[task, row, position] = b[index] @ (a[index] @ x[task, row, position])
    np.testing.assert_allclose(lora_delta(jnp.asarray(x), jnp.asarray(a), jnp.asarray(b)), expected, atol=1e-4)


def test_lora_delta_makes_no_copy_of_a_per_row():
    """The largest intermediate of T tasks with R rows is the output, not A or B repeated R times."""
    x, a, b = jnp.zeros((2, 50, 4, 64)), jnp.zeros((2, 8, 64)), jnp.zeros((2, 64, 8))
    jaxpr = jax.make_jaxpr(lora_delta)(x, a, b)
    assert max(var.aval.size for equation in jaxpr.eqns for var in equation.outvars) == x.size


@pytest.mark.parametrize("batch", [(), (4,)])
def test_dense_delta_is_a_loop_over_layers(batch):
    adapter = random_adapter(batch=batch)
    for name, delta in dense_delta(adapter).items():
        a, b = np.asarray(adapter.weights[name]["a"]), np.asarray(adapter.weights[name]["b"])
        for index in np.ndindex(*batch, SPEC.num_layers):
            np.testing.assert_allclose(delta[index], 6 / math.sqrt(2) * (b[index] @ a[index]).T, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_delta_norms_are_those_of_the_dense_delta(batch):
    adapter = random_adapter(batch=batch)
    for name, delta in dense_delta(adapter).items():
        np.testing.assert_allclose(delta_norms(adapter)[name], np.linalg.norm(delta, axis=(-2, -1)), rtol=1e-5)


def test_dense_delta_and_lora_delta_agree():
    adapter, x = random_adapter(), jnp.asarray(normal(5, 12, seed=3))
    for layer in range(SPEC.num_layers):
        a, b = adapter.weights["q_proj"]["a"][layer], adapter.weights["q_proj"]["b"][layer]
        expected = x @ dense_delta(adapter)["q_proj"][layer]
        np.testing.assert_allclose(SPEC.scale * lora_delta(x, a, b), expected, atol=1e-4)


def kernels(dtype=jnp.float32) -> dict:
    layers = {m.name: {"kernel": jnp.asarray(normal(3, m.d_in, m.d_out), dtype)} for m in SPEC.modules}
    layers["q_proj"]["bias"] = jnp.ones((3, 8))
    layers["k_proj"] = {"kernel": jnp.ones((3, 12, 4))}
    return {"embedding": jnp.ones((7, 12)), "layers": layers}


def test_merge_adds_the_delta_and_nothing_else():
    params, adapter = kernels(), random_adapter()
    merged = merge(params, adapter)
    for name, delta in dense_delta(adapter).items():
        expected = params["layers"][name]["kernel"] + delta
        np.testing.assert_allclose(merged["layers"][name]["kernel"], expected, atol=1e-5)
    assert merged["layers"]["q_proj"]["bias"] is params["layers"]["q_proj"]["bias"]
    assert merged["layers"]["k_proj"] is params["layers"]["k_proj"]
    assert merged["embedding"] is params["embedding"]
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_array_equal(params["layers"]["q_proj"]["kernel"], kernels()["layers"]["q_proj"]["kernel"])


def test_merge_keeps_the_weights_dtype():
    assert merge(kernels(jnp.bfloat16), random_adapter())["layers"]["v_proj"]["kernel"].dtype == jnp.bfloat16


def test_merge_takes_one_adapter():
    with pytest.raises(UserError, match=r"batch of shape \(2,\)"):
        merge(kernels(), random_adapter(batch=(2,)))


def test_stack_and_index():
    adapters = [random_adapter(seed=seed) for seed in range(3)]
    batch = stack(adapters)
    assert batch.batch_shape == (3,)
    assert len(batch) == 3
    assert batch.spec == SPEC
    for index, adapter in enumerate(adapters):
        jax.tree.map(np.testing.assert_array_equal, batch[index], adapter)
    assert batch[1:].batch_shape == (2,)
    assert stack([batch, batch]).batch_shape == (2, 3)
    assert stack([batch, batch])[1][2].batch_shape == ()
    assert len(list(batch)) == 3
    with pytest.raises(IndexError, match="adapter 3 of a batch of 3"):
        batch[3]


def test_one_adapter_has_no_length_and_no_items():
    with pytest.raises(TypeError, match="no length"):
        len(random_adapter())
    with pytest.raises(IndexError, match="no batch axis"):
        random_adapter()[0]


def test_adapters_of_two_specs_do_not_mix():
    other = random_adapter(LoraSpec(SPEC.modules, 3, rank=2, alpha=7.0))
    with pytest.raises(ValueError, match="LoraSpec"):
        jax.tree.map(jnp.add, random_adapter(), other)


def test_algebra_by_tree_map():
    one, two = random_adapter(seed=1), random_adapter(seed=2)
    mean = jax.tree.map(lambda x, y: (x + y) / 2, one, two)
    assert isinstance(mean, Adapter)
    assert mean.spec == SPEC
    expected = (one.weights["v_proj"]["b"] + two.weights["v_proj"]["b"]) / 2
    np.testing.assert_allclose(mean.weights["v_proj"]["b"], expected, atol=1e-6)
    averaged = jax.tree.map(lambda leaf: leaf.mean(0), stack([one, two]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), averaged, mean)


def test_adapters_pass_through_jit_grad_and_vmap():
    batch = stack([random_adapter(seed=seed) for seed in range(3)])

    def energy(adapter: Adapter) -> jax.Array:
        return sum(jnp.sum(delta**2) for delta in dense_delta(adapter).values())

    energies, gradient = jax.jit(jax.vmap(jax.value_and_grad(energy)))(batch)
    expected = [
        sum(np.sum(np.square(delta[i])) for delta in jax.device_get(dense_delta(batch)).values()) for i in range(3)
    ]
    np.testing.assert_allclose(energies, expected, rtol=1e-5)
    assert gradient.spec == SPEC
    assert gradient.batch_shape == (3,)
    # The energy is of second degree in B, so that the gradient along B is twice the energy.
    along_b = [np.sum(w["b"] * batch.weights[name]["b"], axis=(1, 2, 3)) for name, w in gradient.weights.items()]
    np.testing.assert_allclose(sum(along_b), 2 * energies, rtol=1e-4)


CONFIG = DecoderConfig(
    vocab_size=7,
    width=12,
    num_layers=3,
    mlp_width=20,
    attention=AttentionConfig(2, 1, 4, layers=(LayerAttention(),) * 3),
)


def test_a_decoder_knows_its_specs():
    assert CONFIG.lora_spec(("v_proj", "q_proj", "down_proj"), rank=2, alpha=6.0) == SPEC
    CONFIG.check_adapter(SPEC)
    with pytest.raises(UserError, match="no projection lm_head"):
        CONFIG.lora_spec(("q_proj", "lm_head"))
    with pytest.raises(UserError, match="4 layers, the base model 3"):
        CONFIG.check_adapter(LoraSpec((Q,), num_layers=4))
    with pytest.raises(UserError, match="v_proj is 12 -> 5"):
        CONFIG.check_adapter(LoraSpec((Q, LoraModule("v_proj", 12, 5)), num_layers=3))
