"""The losses of reconstruction against naive forms in double precision, values and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_library import SPEC, random_adapters

from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition
from t2l_jax.training.objectives import Reconstruction, ReconstructionConfig, TargetBatch
from t2l_jax.training.objectives.reconstruction import delta_loss, factor_loss, squared_errors

OWN, TARGET = random_adapters(3, seed=1), random_adapters(3, seed=2)
STD = jax.tree.map(lambda leaf: jnp.abs(leaf[0]) + 0.05, random_adapters(1, seed=3))


def dense(adapter):
    """B A of every layer, formed whole."""
    return {name: pair["b"] @ pair["a"] for name, pair in adapter.weights.items()}


def naive_factors(adapter):
    parts = []
    for name, pair in adapter.weights.items():
        std = STD.weights[name]
        parts.append(sum(jnp.mean(jnp.abs((pair[s] - TARGET.weights[name][s]) / std[s][None])) for s in "ab"))
    return sum(parts) / len(parts)


def naive_delta(adapter):
    own, wanted = dense(adapter), dense(TARGET)
    return 1e4 * sum(jnp.mean(jnp.abs(own[name] - wanted[name])) for name in own) / len(own)


def naive_gram(adapter):
    own, wanted = dense(adapter), dense(TARGET)
    error = sum(jnp.sum((own[name] - wanted[name]) ** 2, axis=(1, 2, 3)) for name in own)
    return jnp.mean(error / sum(jnp.sum(delta**2, axis=(1, 2, 3)) for delta in wanted.values()))


def objective(loss):
    config = ReconstructionConfig(loss)
    return Reconstruction(STD if config.scores else None, config)


def loss_of(loss):
    batch = TargetBatch(Condition(task=np.arange(3, dtype=np.int32)), TARGET)
    return lambda adapter: objective(loss).loss(adapter, batch, None)[0]


@pytest.mark.parametrize(
    ("loss", "naive"),
    [("factors", naive_factors), ("delta", naive_delta), ("gram", naive_gram)],  # canonical: other targets alone
)
def test_losses_and_their_gradients_are_those_of_the_naive_form(loss, naive):
    value, gradient = jax.value_and_grad(loss_of(loss))(OWN)
    wanted, slope = jax.value_and_grad(naive)(OWN)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("loss", ["factors", "delta", "gram"])
def test_the_targets_themselves_have_no_loss(loss):
    batch = TargetBatch(Condition(task=np.arange(3, dtype=np.int32)), TARGET)
    value, metrics = objective(loss).loss(TARGET, batch, None)
    assert abs(float(value)) < 1e-6
    assert float(metrics["relative_error"]) < 1e-3


def test_the_metric_is_the_relative_error_of_the_deltas_for_every_loss():
    batch = TargetBatch(Condition(task=np.arange(3, dtype=np.int32)), TARGET)
    own, wanted = dense(OWN), dense(TARGET)
    error = [sum(np.sum((np.asarray(own[n] - wanted[n])[t]) ** 2) for n in own) for t in range(3)]
    size = [sum(np.sum(np.asarray(wanted[n])[t] ** 2) for n in own) for t in range(3)]
    for loss in ("factors", "delta", "gram"):
        found = objective(loss).loss(OWN, batch, None)[1]["relative_error"]
        np.testing.assert_allclose(found, np.mean(np.sqrt(np.divide(error, size))), rtol=1e-5)


def test_equal_deltas_of_other_factors_are_at_distance_zero_for_gram_and_delta_alone():
    mix = jnp.asarray([[2.0, 1.0], [0.5, -1.0]])
    weights = {
        name: {"a": jnp.einsum("rs,...si->...ri", mix, p["a"]), "b": p["b"] @ jnp.linalg.inv(mix)}
        for name, p in TARGET.weights.items()
    }
    other = replace(TARGET, weights=weights)
    error, norm = squared_errors(other, TARGET)
    assert np.all(error < 1e-5 * norm)
    assert float(delta_loss(other, TARGET)) < 1e-2 * float(delta_loss(OWN, TARGET))
    assert float(factor_loss(other, TARGET, STD)) > 0.1


def _widest(jaxpr) -> int:
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(v.aval.shape)) for v in equation.outvars]
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    sizes.append(_widest(inner))
    return max(sizes)


def test_gram_forms_no_delta_and_delta_forms_one_layer_at_a_time():
    """The largest array of the computation and its gradient, for wide projections of many layers."""
    wide = replace(SPEC, modules=tuple(replace(m, d_in=64, d_out=64) for m in SPEC.modules), num_layers=12)
    own, target = random_adapters(2, 1, wide), random_adapters(2, 2, wide)
    factors = 2 * 12 * 2 * 64  # of one module's A or B for both tasks
    layer = 2 * 64 * 64
    gram = jax.make_jaxpr(jax.grad(lambda a: jnp.sum(squared_errors(a, target)[0])))(own)
    assert _widest(gram.jaxpr) <= factors
    delta = jax.make_jaxpr(jax.grad(lambda a: delta_loss(a, target)))(own)
    assert layer <= _widest(delta.jaxpr) < 4 * layer


def test_batches_are_counted_in_adapters():
    batch = TargetBatch(Condition(task=np.arange(3, dtype=np.int32)), TARGET)
    assert objective("gram").counts(batch) == {"adapters": 3}


def test_an_unknown_loss_is_refused():
    with pytest.raises(UserError, match="objective: field loss: must be 'factors'"):
        ReconstructionConfig("cosine")
