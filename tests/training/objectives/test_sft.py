"""The SFT loss against PyTorch: cross-entropy, and a merged tiny Llama of transformers, one row at a time."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy as torch_cross_entropy

from t2l_jax.data.batch import Batch
from t2l_jax.data.batches import Packed, TokenTable, collate, pack
from t2l_jax.data.prompts import Encoded
from t2l_jax.decoder import Decoder, logits
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter, dense_delta
from t2l_jax.training.answer_loss import CHUNK
from t2l_jax.training.objectives.sft import Sft, SftConfig, neftune_noise, segment_sums, weight_penalty

VOCAB = 97


@jax.jit
def loss_of(objective, adapter, batch, key):
    return objective.loss(adapter, batch, key)


PLAIN = SftConfig(label_smoothing=0.0, weight_l2=0.0, neftune=0.0, lora_dropout=0.0)
ROWS = [
    [Encoded((5, 6, 7), (8, 9, 2)), Encoded((11, 12, 13, 14, 15, 16), (2,))],
    [Encoded((21,), (22, 23, 24, 25, 2)), Encoded((31, 32), (33, 2))],
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(transformers' model, our decoder, its parameters)."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * (1.0 if param.ndim == 1 else 2 * param.shape[1] ** -0.5))
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    decoder_config, params = load_base(resolve(folder))
    return model, Decoder(decoder_config), params


@pytest.fixture(scope="module")
def adapters(llama):
    """One random adapter for each of two tasks."""
    spec = llama[1].config.lora_spec(rank=2, alpha=1.0)
    rng = np.random.default_rng(0)
    return Adapter(
        {
            name: {side: jnp.asarray(rng.standard_normal((2, *shape), np.float32)) for side, shape in shapes.items()}
            for name, shapes in spec.shapes().items()
        },
        spec,
    )


def conditions(count: int) -> Condition:
    return Condition(np.zeros((count, 4), np.float32), np.arange(count, dtype=np.int32))


def batch_of(tasks: list[list[Encoded]], length: int = 16, packed: bool = False) -> Batch:
    """The examples of each task in one row, what they begin with once, or one to a row."""
    rows = [
        pack(TokenTable.of(task), np.arange(len(task)), 1, length) if packed else Packed((), [[one] for one in task])
        for task in tasks
    ]
    batch = collate(rows, conditions(len(rows)), length)
    return jax.tree.map(jnp.asarray, batch)


def torch_loss(model, adapter: Adapter, rows: list[list[Encoded]], smoothing: float = 0.0) -> float:
    """The mean over rows of the mean over answer tokens; the adapter is merged, and nothing is padded."""
    losses = []
    for task, examples in enumerate(rows):
        originals = {name: value.clone() for name, value in model.state_dict().items()}
        for name, delta in dense_delta(adapter[task]).items():
            for layer, change in enumerate(np.array(delta)):
                weight = getattr(model.model.layers[layer].self_attn, name).weight
                weight.data += torch.from_numpy(change.T)
        for prompt, answer in examples:
            with torch.no_grad():
                scores = model(torch.tensor([(*prompt, *answer)])).logits[0, len(prompt) - 1 : -1]
            losses.append(torch_cross_entropy(scores, torch.tensor(answer), label_smoothing=smoothing).item())
        model.load_state_dict(originals)
    return float(np.mean(losses))


def test_packing_changes_neither_loss_nor_gradients_nor_metrics(llama, adapters):
    """All examples of a task in one row, against one to a row; one answer is right by construction.

    All prompts begin with the same tokens, which a packed row holds once.
    """
    _, decoder, base = llama
    tasks = [[*ROWS[0], ROWS[1][1]], [*ROWS[1], ROWS[0][1], ROWS[0][0]]]
    tasks = [[Encoded((5, 6, 7, 8, *prompt), wanted) for prompt, wanted in task] for task in tasks]
    first, _ = decoder.apply({"params": base}, jnp.asarray([tasks[0][0].prompt]), adapters[0])
    likeliest = int(jnp.argmax(logits(decoder.config, base, first[0, -1])))
    tasks[0].append(Encoded(tasks[0][0].prompt, (likeliest,)))
    found = jax.jit(
        jax.value_and_grad(lambda adapter, batch: Sft(base, decoder, PLAIN).loss(adapter, batch, None), has_aux=True)
    )
    together = batch_of(tasks, 40, packed=True)
    assert [list(row[row == 1]) for row in np.asarray(together.segments[:, 0])] == [[1] * 4] * 2
    (packed, metrics), gradients = found(adapters, together)
    rows = [[[example] for example in task] for task in tasks]
    rows[0] += [[]] * (len(rows[1]) - len(rows[0]))
    rows[1] += [[]] * (len(rows[0]) - len(rows[1]))
    apart = collate([Packed((), task) for task in rows], conditions(2), 40)
    alone = jax.tree.map(jnp.asarray, apart)
    (expected, wanted), slopes = found(adapters, alone)
    np.testing.assert_allclose(packed, expected, rtol=1e-5)
    assert float(metrics["exact"]) == pytest.approx(float(wanted["exact"]))
    assert float(metrics["exact"]) >= 1 / 8 - 1e-6
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * largest), gradients, slopes)


def test_sft_loss_is_that_of_the_merged_model_row_by_row(llama, adapters):
    model, decoder, base = llama
    loss, metrics = loss_of(Sft(base, decoder, PLAIN), adapters, batch_of(ROWS), None)
    np.testing.assert_allclose(loss, torch_loss(model, adapters, ROWS), rtol=1e-4)
    np.testing.assert_allclose(metrics["cross_entropy"], loss, rtol=1e-6)
    swapped = jax.tree.map(lambda leaf: leaf[::-1], adapters)
    assert abs(loss_of(Sft(base, decoder, PLAIN), swapped, batch_of(ROWS), None)[0] - loss) > 0.01


def test_labels_are_smoothed_in_training_only(llama, adapters):
    model, decoder, base = llama
    config = replace(PLAIN, label_smoothing=0.1)
    loss = loss_of(Sft(base, decoder, config), adapters, batch_of(ROWS), jax.random.key(0))[0]
    np.testing.assert_allclose(loss, torch_loss(model, adapters, ROWS, smoothing=0.1), rtol=1e-4)
    loss = loss_of(Sft(base, decoder, config), adapters, batch_of(ROWS), None)[0]
    np.testing.assert_allclose(loss, torch_loss(model, adapters, ROWS), rtol=1e-4)


def test_an_example_weighs_the_same_however_long_its_answer(llama, adapters):
    """The loss of a batch is the mean of its examples' losses."""
    _, decoder, base = llama
    alone = [
        loss_of(Sft(base, decoder, PLAIN), adapters[task : task + 1], batch_of([[example]]), None)[0]
        for task, examples in enumerate(ROWS)
        for example in examples
    ]
    together = loss_of(Sft(base, decoder, PLAIN), adapters, batch_of(ROWS), None)[0]
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)


def test_padding_changes_nothing(llama, adapters):
    _, decoder, base = llama
    batch = batch_of(ROWS)

    def more(array: jax.Array, value: int) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, 0), (0, 5)), constant_values=value)

    padded = batch.replace(
        tokens=more(batch.tokens, 3),
        segments=more(batch.segments, 0),
        positions=more(batch.positions, 4),
        targets=more(batch.targets, 7),
        weights=more(batch.weights, 0),
    )
    _, expected = loss_of(Sft(base, decoder, PLAIN), adapters, batch, None)
    _, found = loss_of(Sft(base, decoder, PLAIN), adapters, padded, None)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_exact_is_the_share_of_answers_whose_every_token_is_the_likeliest(llama, adapters):
    model, decoder, base = llama
    prompts = [[example.prompt for example in examples] for examples in ROWS]
    with torch.no_grad():
        greedy = [[int(model(torch.tensor([p])).logits[0, -1].argmax()) for p in row] for row in prompts]
    greedy[1][0] = (greedy[1][0] + 1) % VOCAB
    rows = [[Encoded(prompts[t][r], (greedy[t][r],)) for r in range(2)] for t in range(2)]
    nothing = jax.tree.map(jnp.zeros_like, adapters)
    _, metrics = loss_of(Sft(base, decoder, PLAIN), nothing, batch_of(rows), None)
    assert float(metrics["exact"]) == pytest.approx(0.75)


def test_without_a_key_nothing_is_random_and_with_one_everything_that_is_configured_is(llama, adapters):
    _, decoder, base = llama
    batch = batch_of(ROWS)

    def loss(config: SftConfig, seed: int | None) -> float:
        key = None if seed is None else jax.random.key(seed)
        return float(loss_of(Sft(base, decoder, config), adapters, batch, key)[0])

    still = loss(SftConfig(weight_l2=0.0), None)
    assert still == loss(PLAIN, None) == pytest.approx(loss(PLAIN, 0), rel=1e-6)
    for config in (replace(PLAIN, neftune=5.0), replace(PLAIN, lora_dropout=0.5)):
        assert loss(config, 0) == loss(config, 0)
        assert abs(loss(config, 0) - loss(config, 1)) > 1e-5
        assert abs(loss(config, 0) - still) > 1e-5


def test_weight_penalty_is_a_mean_of_squares_per_side_summed_over_modules(llama, adapters):
    squares = [np.mean(np.asarray(side) ** 2) for w in adapters.weights.values() for side in w.values()]
    assert len(squares) == 4
    np.testing.assert_allclose(weight_penalty(adapters), sum(squares), rtol=1e-6)
    _, decoder, base = llama
    loss, metrics = loss_of(Sft(base, decoder, replace(PLAIN, weight_l2=0.1)), adapters, batch_of(ROWS), None)
    np.testing.assert_allclose(loss - metrics["cross_entropy"], 0.1 * sum(squares), rtol=1e-4)


def test_neftune_noise_is_uniform_within_strength_over_root_of_an_examples_length_and_width():
    segments = jnp.asarray([[1] * 40, [2] * 10 + [3] * 25 + [0] * 5])
    noise = np.asarray(neftune_noise(jax.random.key(0), segments, 64, strength=5.0))
    assert noise.shape == (2, 40, 64)
    for row, start, length in ((0, 0, 40), (1, 0, 10), (1, 10, 25)):
        bound = 5.0 / math.sqrt(length * 64)
        real = noise[row, start : start + length]
        assert np.abs(real).max() <= bound
        assert np.abs(real).max() == pytest.approx(bound, rel=0.02)
        assert real.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert real.mean() == pytest.approx(0, abs=0.1 * bound)
    assert not noise[1, 35:].any()


def test_a_row_of_n_may_number_its_examples_up_to_n_plus_one():
    """Segment 1 is what the examples share: of two one-token answers the second is of segment 3."""
    found = segment_sums(jnp.asarray([[5.0, 7.0]]), jnp.asarray([[2, 3]]))
    np.testing.assert_array_equal(found, [[5.0, 7.0]])


def test_neftune_noise_of_what_examples_share_is_that_of_the_longest():
    segments = jnp.asarray([[1] * 10 + [2] * 40 + [3] * 20])
    noise = np.abs(np.asarray(neftune_noise(jax.random.key(0), segments, 64, strength=5.0)))[0]
    for places, length in ((slice(0, 10), 50), (slice(10, 50), 50), (slice(50, 70), 30)):
        assert noise[places].max() == pytest.approx(5.0 / math.sqrt(length * 64), rel=0.02)


def test_neftune_noise_of_an_empty_row_is_zero():
    assert not neftune_noise(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), 8, 5.0).any()


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of all intermediates, those of inner programs included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.shape for variable in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            found |= shapes_in(inner) if hasattr(inner, "eqns") else set()
    return found


def test_scores_are_computed_at_supervised_positions_only(llama, adapters):
    """Forward and backward: nothing over the vocabulary is larger than what is scored at a time."""
    _, decoder, base = llama
    batch = batch_of([[Encoded((1,) * 40, (2,))] * 2] * 2, length=40)

    def loss(adapter: Adapter) -> jax.Array:
        return Sft(base, decoder).loss(adapter, batch, jax.random.key(0))[0]

    found = shapes_in(jax.make_jaxpr(jax.grad(loss))(adapters).jaxpr)
    over_vocabulary = {shape for shape in found if VOCAB in shape}
    assert over_vocabulary == {(CHUNK, VOCAB)}
    assert any(40 in shape for shape in found)  # the layers were looked into
