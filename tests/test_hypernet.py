"""The hypernetwork against the paper's network written in PyTorch."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_network import (
    HEADS,
    MODULES,
    SPEC,
    TINY,
    assert_close,
    embeddings,
    random_variables,
    torch_adapter,
    with_task,
)

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.decoder.attention import AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.hypernet import (
    Condition,
    Hypernet,
    HypernetConfig,
    TaskEncoder,
    TaskEncoderConfig,
    init,
    write_adapters,
)
from t2l_jax.lora import Adapter, LoraModule, LoraSpec, init_adapter

heads = pytest.mark.parametrize("config", HEADS.values(), ids=HEADS)


@partial(jax.jit, static_argnums=(0, 1))
def made(config, spec, variables, z):
    return write_adapters(config, spec, variables, Condition(z=z))


@heads
def test_heads_are_the_papers(config):
    """And a batch of tasks gives what each gives alone."""
    variables, z = random_variables(config), embeddings(2)
    adapters = made(config, SPEC, variables, z)
    assert adapters.batch_shape == (2,)
    for index in range(2):
        assert_close(adapters[index], torch_adapter(config, variables, z[index]))


@pytest.mark.parametrize("standardised", [False, True], ids=["plain", "standardised"])
@pytest.mark.parametrize("bias", ["shared", "none"])
@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_heads_for_reconstruction_are_the_papers(head, bias, standardised):
    config = replace(TINY, head=head, head_bias=bias, init="reconstruction", standardised=standardised)
    variables, z = random_variables(config), embeddings(2)
    assert_close(made(config, SPEC, variables, z)[1], torch_adapter(config, variables, z[1]))


@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_a_head_without_bias_has_only_a_kernel(head):
    variables = random_variables(replace(TINY, head=head, head_bias="none"))
    assert variables.keys() == {"params"}
    assert all(variables["params"][f"head_{module.name}"].keys() == {"kernel"} for module in MODULES)


@pytest.mark.parametrize("head", ["M", "S"])
def test_a_shared_bias_begins_with_b_like_a(head):
    """And within the bounds of PyTorch's LoRA, divided by sqrt(2) and sqrt(2 r); S with equal rows."""
    config = replace(TINY, head=head, head_bias="shared")
    adapter = made(config, SPEC, init(jax.random.key(0), config, SPEC), embeddings(1))[0]
    for module in MODULES:
        a, b = (np.asarray(adapter.weights[module.name][side]) for side in "ab")
        narrow = min(module.d_in, module.d_out)
        np.testing.assert_array_equal(a[:, :, :narrow], b[:, :narrow].swapaxes(1, 2))
        bound = 1 / math.sqrt(module.d_in * (2 if head == "M" else 2 * SPEC.rank))
        assert 0.8 * bound < np.abs(a).max() <= bound
        assert (np.ptp(a, axis=1).max() == 0) == (head == "S")


def test_layers_can_begin_as_in_pytorch():
    config = replace(TINY, linear_init="uniform", embedding_init="unit", init="reconstruction", head_bias="none")
    params = init(jax.random.key(0), config, SPEC)["params"]
    layers = {"task": params["task"]["linear"], "up": params["query"]["mlp1"]["up"], "head": params["head_q_proj"]}
    for layer in layers.values():
        bound = 1 / math.sqrt(layer["kernel"].shape[0])
        for leaf in layer.values():
            assert 0.7 * bound < np.abs(leaf).max() <= bound
    assert 0.6 < np.std(params["query"]["depth"]["embedding"]) < 1.4


@pytest.mark.parametrize("kind", ["discrete", "vq", "softmax"])
def test_task_encoders_are_as_documented(kind):
    config = with_task(TINY, kind=kind)
    variables = random_variables(config)
    adapters = made(config, SPEC, variables, embeddings(3))
    for index, z in enumerate(embeddings(3)):
        assert_close(adapters[index], torch_adapter(config, variables, z))


def test_one_hot_task_identity_in_place_of_text():
    config = with_task(TINY, dim=5)
    variables = random_variables(config)
    z = jnp.eye(5)
    adapters = made(config, SPEC, variables, z)
    assert_close(adapters[3], torch_adapter(config, variables, z[3]))
    assert not np.allclose(adapters.weights["q_proj"]["a"][3], adapters.weights["q_proj"]["a"][4])


@pytest.mark.parametrize("offset", ["frozen", "learned"])
def test_an_offset_adapter_is_added_to_every_output(offset):
    config = replace(TINY, offset=offset)
    group = {"frozen": "constants", "learned": "params"}[offset]
    variables = random_variables(config)
    adapters = made(config, SPEC, variables, embeddings(2))
    assert_close(adapters[1], torch_adapter(config, variables, embeddings(2)[1]))

    other = {**variables, group: {**variables[group], "offset": init_adapter(jax.random.key(7), SPEC)}}
    moved = jax.tree.map(jnp.subtract, made(config, SPEC, other, embeddings(2)), adapters)
    change = jax.tree.map(jnp.subtract, other[group]["offset"], variables[group]["offset"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, [y, y], atol=1e-5), moved, change)


@pytest.mark.parametrize(("head", "count"), [("L", 55_424_000), ("M", 34_346_752), ("S", 4_987_904)])
def test_parameter_counts_for_mistral_7b_are_the_papers(head, count):
    modules = LoraModule("q_proj", 4096, 4096), LoraModule("v_proj", 4096, 1024)
    config, spec = HypernetConfig(TaskEncoderConfig(dim=1024), head), LoraSpec(modules, num_layers=32)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config, spec))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == count


BASE = DecoderConfig(
    vocab_size=31,
    width=100,
    num_layers=2,
    mlp_width=400,
    attention=AttentionConfig(4, 2, 4, layers=(LayerAttention(),) * 2),
)


@pytest.mark.parametrize("head", ["L", "M", "S"])
def test_for_sft_the_first_adapters_are_a_loras_start(head):
    """B is zero, so the base model is exactly itself; A is uniform within the bound of its head."""
    config, spec = replace(TINY, head=head), BASE.lora_spec(("q_proj", "down_proj"), rank=8)
    adapters = made(config, spec, init(jax.random.key(0), config, spec), embeddings(2))
    tokens = jnp.asarray(np.random.default_rng(0).integers(31, size=(2, 3, 7)))
    decoder = Decoder(BASE)
    params = jax.jit(decoder.init)(jax.random.key(1), tokens)["params"]
    run = jax.jit(lambda adapter: logits(BASE, params, decoder.apply({"params": params}, tokens, adapter)[0]))
    np.testing.assert_array_equal(run(adapters), run(None))

    for name, d_in in (("q_proj", 100), ("down_proj", 400)):
        np.testing.assert_array_equal(adapters.weights[name]["b"], 0.0)
        a = np.asarray(adapters.weights[name]["a"])  # [T, L, r, i]
        bound = 1 / math.sqrt(d_in) / {"L": 1, "M": math.sqrt(2), "S": math.sqrt(2 * 8)}[head]
        assert np.abs(a).max() == pytest.approx(bound, rel=0.02)
        assert np.abs(a).max() <= bound * (1 + 1e-6)
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert np.ptp(a, axis=(0, 1)).max() == 0  # one bias serves every task and layer


def test_for_reconstruction_the_first_adapters_are_not_zero():
    config = replace(TINY, init="reconstruction")
    adapter = made(config, SPEC, init(jax.random.key(0), config, SPEC), embeddings(2))[0]
    assert all(np.all(np.any(leaf, axis=(1, 2))) for leaf in jax.tree.leaves(adapter))


def random_adapter() -> Adapter:
    rng = np.random.default_rng(4)
    weights = {
        name: {side: jnp.asarray(rng.standard_normal(shape, np.float32)) for side, shape in shapes.items()}
        for name, shapes in SPEC.shapes().items()
    }
    return Adapter(weights, SPEC)


def distance(adapter: Adapter, wanted: Adapter) -> jax.Array:
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(jax.tree.map(lambda x, y: (x - y) ** 2, adapter, wanted)))


VARIANTS = {
    "L, discrete": with_task(HEADS["L"], kind="discrete"),
    "M, vq": with_task(HEADS["M"], kind="vq"),
    "S, softmax, offset": replace(with_task(HEADS["S"], kind="softmax"), offset="learned"),
    "S, rotary": HEADS["S-rotary"],
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_gradients_reach_every_parameter(config):
    """Through hard choices too; a vector-quantised codebook learns from its own loss."""
    variables, wanted, z = random_variables(config), random_adapter(), embeddings(8)

    def loss(params: dict, one: jax.Array) -> jax.Array:
        adapter, sown = Hypernet(config, SPEC).apply(
            {**variables, "params": params}, Condition(z=one), mutable=["losses"]
        )
        return distance(adapter, wanted) + sum(jax.tree.leaves(sown))

    gradients = jax.jit(jax.grad(lambda params: jnp.sum(jax.vmap(loss, (None, 0))(params, z))))(variables["params"])
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.any(leaf), f"no gradient reaches {jax.tree_util.keystr(path)}"
    assert np.all(np.any(gradients["query"]["depth"]["embedding"], axis=1))
    assert np.all(np.any(gradients["query"]["type"]["embedding"], axis=1))


def test_the_loss_of_vector_quantisation_is_the_papers():
    """mean (e - sg(x))² + 0.25 mean (sg(e) - x)², whose value is 1.25 mean (e - x)²."""
    config = with_task(TINY, kind="vq")
    variables, z = random_variables(config), jnp.asarray(embeddings(1)[0])
    task = variables["params"]["task"]
    _, sown = TaskEncoder(config).apply({"params": task}, z, mutable=["losses"])
    found = z @ task["linear"]["kernel"] + task["linear"]["bias"]
    nearest = min(np.mean((code - found) ** 2) for code in np.asarray(task["codebook"]))
    np.testing.assert_allclose(jax.tree.leaves(sown), [1.25 * nearest], rtol=1e-5)


def test_an_adapter_of_a_single_task_has_no_leading_axis():
    variables, z = random_variables(TINY), embeddings(2)
    one = jax.jit(Hypernet(TINY, SPEC).apply)(variables, Condition(z=z[1]))
    assert {name: {side: x.shape for side, x in w.items()} for name, w in one.weights.items()} == SPEC.shapes()
    many = made(TINY, SPEC, variables, z)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), many, one)


@heads
def test_array_axes_are_vmap_of_single_queries(config):
    """A single query: one task, module and layer; in S, where rows have embeddings, one row of A and of B, too."""
    variables, z = random_variables(config), embeddings(2)
    params, many = variables["params"], made(config, SPEC, variables, z)
    query, fixed, by_row = params["query"], variables.get("constants", {}), "row" in params["query"]

    def written(module: LoraModule, z: jax.Array, layer: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
        """A and B by a network that has only what is asked for in its tables."""
        index = SPEC.modules.index(module)
        places = {"depth": layer[None], "type": index + jnp.arange(1), "side": 2 * index + jnp.arange(2), "row": rows}
        tables = {name: {"embedding": query[name]["embedding"][at]} for name, at in places.items() if name in query}
        bias = {name: {"bias_a": own["bias_a"][rows]} for name, own in fixed.items()}
        own = {**variables, "params": {**params, "query": {**query, **tables}}, "constants": bias}
        spec = replace(SPEC, modules=(module,), num_layers=1, rank=len(rows))
        return Hypernet(config, spec).apply(own, Condition(z=z)).weights[module.name]

    rows = jnp.arange(SPEC.rank)[:, None] if by_row else jnp.arange(SPEC.rank)[None]
    for module in MODULES:
        over_rows = jax.vmap(partial(written, module), in_axes=(None, None, 0))
        over_layers = jax.vmap(over_rows, in_axes=(None, 0, None))
        single = jax.jit(jax.vmap(over_layers, in_axes=(0, None, None)))(z, jnp.arange(SPEC.num_layers), rows)
        a, b = (np.asarray(single[side])[:, :, :, 0] for side in "ab")  # [T, L, rows, ...], without the layer of one
        shapes = {"a": (2, SPEC.num_layers, SPEC.rank, module.d_in), "b": (2, SPEC.num_layers, module.d_out, SPEC.rank)}
        found = {"a": a.reshape(shapes["a"]), "b": np.moveaxis(b, 2, -2).reshape(shapes["b"])}
        for side in "ab":
            np.testing.assert_allclose(many.weights[module.name][side], found[side], atol=2e-5)


@pytest.mark.parametrize("head", ["L", "S"])
def test_dropout_is_drawn_per_key(head):
    config = HEADS[head]
    variables, z = random_variables(config), jnp.asarray(embeddings(2)[0])
    train = jax.jit(
        lambda key: Hypernet(config, SPEC, train=True).apply(variables, Condition(z=z), rngs={"dropout": key})
    )
    first, again, other = (train(jax.random.key(seed)).weights["v_proj"] for seed in (0, 0, 1))
    still = made(config, SPEC, variables, embeddings(2))[0].weights["v_proj"]
    for side in ("a", "b"):
        np.testing.assert_array_equal(first[side], again[side])
        assert not np.allclose(first[side], other[side])
        assert not np.allclose(first[side], still[side])


@pytest.mark.parametrize("head", ["L", "S"])
def test_dropout_is_drawn_per_query(head):
    """With queries that all ask the same and heads that all answer alike, only dropout can tell them apart."""
    square = tuple(LoraModule(name, 12, 12) for name in ("q_proj", "k_proj", "o_proj"))
    config, spec = (
        replace(HEADS[head], dropout=0.5, init="reconstruction", head_bias="none"),
        replace(SPEC, modules=square),
    )
    params = init(jax.random.key(0), config, spec)["params"]
    for name in {"depth", "type", "side", "row"} & params["query"].keys():
        params["query"][name] = jax.tree.map(jnp.zeros_like, params["query"][name])
    for module in square:
        params[f"head_{module.name}"] = params["head_q_proj"]

    def answers(train: bool) -> np.ndarray:
        net = Hypernet(config, spec, train=train)
        adapter = jax.jit(net.apply)(
            {"params": params}, Condition(z=embeddings(1)[0]), rngs={"dropout": jax.random.key(0)}
        )
        a = np.stack([adapter.weights[module.name]["a"] for module in square])  # [M, L, r, i]
        return a.reshape(-1, 12) if head == "S" else a.reshape(9, -1)  # in S each row is a query of its own

    assert len(np.unique(answers(train=False).round(5), axis=0)) == 1
    drawn = answers(train=True)
    assert len(np.unique(drawn.round(5), axis=0)) == len(drawn)


def test_modules_may_be_listed_in_any_order():
    backwards = replace(SPEC, modules=MODULES[::-1])
    variables, z = random_variables(TINY), embeddings(2)
    jax.tree.map(np.testing.assert_array_equal, made(TINY, backwards, variables, z), made(TINY, SPEC, variables, z))


@heads
@pytest.mark.parametrize(
    "spec",
    [LoraSpec(MODULES[:1], 3, 4), LoraSpec(MODULES, 1, 4), LoraSpec(MODULES, 3, 1)],
    ids=["one module", "one layer", "rank 1"],
)
def test_the_smallest_adapters_have_their_shapes(config, spec):
    variables = jax.eval_shape(lambda: init(jax.random.key(0), config, spec))
    adapter = jax.eval_shape(lambda v, z: write_adapters(config, spec, v, Condition(z=z)), variables, embeddings(2))
    for module in spec.modules:
        assert adapter.weights[module.name]["a"].shape == (2, spec.num_layers, spec.rank, module.d_in)
        assert adapter.weights[module.name]["b"].shape == (2, spec.num_layers, module.d_out, spec.rank)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HypernetConfig(latent=6), "latent must be a multiple of 4, got 6"),
        (lambda: HypernetConfig(head_in=0), "hypernet: field head_in: must be at least 1, got 0"),
        (lambda: HypernetConfig(dropout=1), "field dropout: must be below 1, got 1"),
        (lambda: TaskEncoderConfig(codebook=0), "hypernet.task: field codebook: must be at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
