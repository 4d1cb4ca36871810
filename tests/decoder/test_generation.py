"""Generation against transformers' greedy `generate`, and against itself however prompts are batched."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_models import save_tiny

from t2l_jax.decoder import Decoder, generation
from t2l_jax.decoder.generation import Sampling, generate_tokens, nucleus, stream
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter, LoraSpec, init_adapter, merge, stack

NEW = 12
PROMPTS = [[5], [7, 8, 9], list(range(3, 40)), [90, 2, 2, 31, 64, 11, 80]]


def load(folder):
    config, params = load_base(resolve(folder))
    return Decoder(config), params


@pytest.fixture(scope="module", params=["smollm2, tied head", "gemma 3", "smollm 3, windows"])
def models(request, tmp_path_factory):
    """A tiny transformers model and ours with the same weights."""
    folder = tmp_path_factory.mktemp("tiny")
    reference = save_tiny(request.param, folder)
    return reference, *load(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny("smollm2, tied head", folder)
    return load(folder)


def reference_greedy(model: transformers.PreTrainedModel, prompt: list[int], stop: int | None = None) -> list[int]:
    """What transformers generates for one prompt alone, without padding."""
    tokens = torch.tensor([prompt])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW,
        do_sample=False,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=stop,
    )[0, len(prompt) :].tolist()
    return out[: out.index(stop)] if stop in out else out


def random_adapters(count: int, spec: LoraSpec) -> Adapter:
    """Adapters that change the tokens."""
    keys = jax.random.split(jax.random.key(0), 2 * count)
    adapters = [
        jax.tree.map(lambda leaf, key=key: leaf + 0.1 * jax.random.normal(key, leaf.shape), init_adapter(other, spec))
        for key, other in zip(keys[:count], keys[count:], strict=True)
    ]
    return stack(adapters)


def test_greedy_tokens_are_those_of_transformers(models):
    reference, decoder, params = models
    ours = generate_tokens(decoder, params, PROMPTS, sampling=Sampling(NEW))
    assert ours == [reference_greedy(reference, prompt) for prompt in PROMPTS]


def test_every_row_stops_by_itself_at_any_stop_token(models):
    reference, decoder, params = models
    free = generate_tokens(decoder, params, PROMPTS, sampling=Sampling(NEW))
    stops = [free[0][3], free[1][0]]  # the second ends its row at once
    ours = generate_tokens(decoder, params, PROMPTS, sampling=Sampling(NEW), stop_ids=stops)
    expected = [row[: min([row.index(stop) for stop in stops if stop in row], default=NEW)] for row in free]
    assert ours == expected
    assert ours[1] == []
    assert ours[0] == reference_greedy(reference, PROMPTS[0], stops[0])[: len(ours[0])]


def test_a_row_does_not_depend_on_the_rows_beside_it(base):
    decoder, params = base
    together = generate_tokens(decoder, params, PROMPTS, sampling=Sampling(NEW))
    assert together == [generate_tokens(decoder, params, [prompt], sampling=Sampling(NEW))[0] for prompt in PROMPTS]


def test_an_adapter_per_row_per_task_or_for_all_is_the_merged_model(base):
    decoder, params = base
    adapters = random_adapters(3, decoder.config.lora_spec(("q_proj", "v_proj", "down_proj"), rank=4))
    merged = [merge(params, adapters[i]) for i in range(3)]
    sampling = Sampling(NEW)

    per_row = generate_tokens(decoder, params, PROMPTS[:3], adapter=adapters, sampling=sampling)
    assert per_row == [generate_tokens(decoder, merged[i], PROMPTS[i : i + 1], sampling=sampling)[0] for i in range(3)]

    groups = [PROMPTS[:1], PROMPTS[1:], PROMPTS[::2]]
    per_task = generate_tokens(decoder, params, groups, adapter=adapters, sampling=sampling)
    assert per_task == [generate_tokens(decoder, merged[i], groups[i], sampling=sampling) for i in range(3)]

    for_all = generate_tokens(decoder, params, groups, adapter=adapters[1], sampling=sampling)
    assert for_all == [generate_tokens(decoder, merged[1], group, sampling=sampling) for group in groups]
    assert per_row[0] != generate_tokens(decoder, params, PROMPTS[:1], sampling=sampling)[0]


@pytest.mark.parametrize("sampling", [Sampling(NEW), Sampling(NEW, temperature=2.0, top_p=0.9)])
def test_streaming_yields_the_tokens_of_generate(base, sampling):
    decoder, params = base
    adapter = random_adapters(1, decoder.config.lora_spec())[0]
    options = {"adapter": adapter, "sampling": sampling, "key": jax.random.key(3)}
    whole = generate_tokens(decoder, params, PROMPTS[1:2], **options)[0]
    assert list(stream(decoder, params, PROMPTS[1], **options)) == whole
    stop = whole[4]
    assert list(stream(decoder, params, PROMPTS[1], stop_ids=[stop], **options)) == whole[: whole.index(stop)]


def test_prompts_of_one_bucket_and_new_sampling_compile_once(base):
    decoder, params = base
    programs = (generation._generate, generation._start_jit, generation._advance_jit)
    for program in programs:
        program.clear_cache()
    generate_tokens(decoder, params, [[1] * 17, [2], [3]], sampling=Sampling(4))
    generate_tokens(decoder, params, [[4, 5, 6], [7] * 23, [8]], sampling=Sampling(4, 0.7, 0.9), key=jax.random.key(1))
    for prompt in ([1], [2, 3], [4] * 16):
        list(stream(Decoder(decoder.config), params, prompt, sampling=Sampling(4)))  # equal decoders are one
    assert [program._cache_size() for program in programs] == [1, 1, 1]
    generate_tokens(decoder, params, [[1] * 25, [2], [3]], sampling=Sampling(4))
    assert generation._generate._cache_size() == 2


def test_long_prompts_are_read_in_chunks_as_if_at_once(models, monkeypatch):
    _, decoder, params = models
    adapters = random_adapters(3, decoder.config.lora_spec())
    prompts = [PROMPTS[2], [9] * 5, list(range(1, 65))]  # of 64 tokens with their padding: four chunks
    padded = generation.pad_prompts([[prompt] for prompt in prompts], decoder.config.vocab_size)
    tokens, lengths = map(jnp.asarray, padded)
    real = np.arange(tokens.shape[-1]) >= tokens.shape[-1] - padded[1][..., None]
    widest = []

    def read(chunk):
        monkeypatch.setattr(generation, "PREFILL_CHUNK", chunk)
        generation._generate.clear_cache()
        hidden, cache = generation.prefill(decoder, params, tokens, lengths, adapters, NEW)
        program = jax.make_jaxpr(lambda: generation.prefill(decoder, params, tokens, lengths, adapters, NEW))()
        widest.append(max(map(int, re.findall(r"bool\[3,1,(\d+),76\]", str(program)))))  # queries of a mask
        new = generate_tokens(decoder, params, prompts, adapter=adapters, sampling=Sampling(NEW))
        return new, np.asarray(hidden)[real], np.asarray(cache.segments), cache.slot

    whole, parts = read(64), read(16)
    generation._generate.clear_cache()
    assert widest == [64, 16]
    assert parts[0] == whole[0]
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-4)
    np.testing.assert_array_equal(parts[2], whole[2])
    assert parts[3] == whole[3] == 64


def test_the_best_score_is_the_first_of_the_largest():
    scores = np.random.default_rng(0).integers(0, 9, (50, 40)).astype(np.float32)  # with ties
    ranked = np.sort(scores, axis=-1)
    np.testing.assert_array_equal(generation.best(jnp.asarray(scores)), scores.argmax(-1))
    np.testing.assert_array_equal(generation.margin(jnp.asarray(scores)), ranked[:, -1] - ranked[:, -2])


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.75, 0.999])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p):
    scores = np.random.default_rng(0).normal(size=(5, 40)) * 2
    kept = np.isfinite(np.asarray(nucleus(jnp.asarray(scores, jnp.float32), jnp.full(5, top_p, jnp.float32))))
    probs = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    for row, mask in zip(probs, kept, strict=True):
        order = np.argsort(-row)
        needed = int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1
        assert set(np.flatnonzero(mask)) == set(order[:needed])


def test_drawn_tokens_follow_the_tempered_nucleus():
    """4,000 rows of the same scores against the probabilities that numpy computes from them."""
    count, temperature, top_p = 4000, 3.0, 0.6
    shape = (1, count)
    scores = jax.random.normal(jax.random.key(5), (40,))
    keys = jax.random.split(jax.random.key(6), shape)
    draws = generation.Draws(jnp.full(shape, temperature), jnp.full(shape, top_p), keys)
    many = jnp.broadcast_to(scores, (*shape, len(scores)))
    drawn = generation.choose(many, draws, jnp.zeros(shape, jnp.int32))

    probs = np.exp(np.asarray(scores, np.float64) / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    probs[order[int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1 :]] = 0
    probs /= probs.sum()
    share = np.bincount(np.asarray(drawn)[0], minlength=len(probs)) / count
    assert set(np.flatnonzero(share)) <= set(np.flatnonzero(probs))
    np.testing.assert_allclose(share, probs, atol=4 * np.sqrt(probs.max() / count))


def test_a_row_that_draws_from_all_tokens_does_so_beside_one_that_does_not():
    """The likeliest tokens may add up to 1 in float32 before the last: here 64 of 74."""
    scores = jnp.broadcast_to(jnp.concatenate([jnp.zeros(64), jnp.full(10, -40.0)]), (2, 74))
    nucleus_alone = np.isfinite(nucleus(scores, jnp.asarray([1.0, 0.5])))
    assert not nucleus_alone[0].all()
    kept = np.isfinite(generation.kept_scores(scores, jnp.asarray([1.0, 0.5])))
    assert kept[0].all()
    np.testing.assert_array_equal(kept[1], nucleus_alone[1])


def test_a_key_draws_the_same_tokens_whatever_the_batch(base):
    decoder, params = base
    sampling = Sampling(NEW, temperature=1.5)
    first = generate_tokens(decoder, params, PROMPTS[:1], sampling=sampling, key=jax.random.key(2))
    assert generate_tokens(decoder, params, PROMPTS[:3], sampling=sampling, key=jax.random.key(2))[:1] == first
    assert generate_tokens(decoder, params, PROMPTS[:1], sampling=sampling, key=jax.random.key(3)) != first
    twice = generate_tokens(decoder, params, PROMPTS[:1] * 2, sampling=sampling, key=jax.random.key(2))
    assert twice[0] != twice[1]


def test_bad_input_is_refused_by_name(base):
    decoder, params = base
    adapters = random_adapters(2, decoder.config.lora_spec())
    cases = [
        (lambda: generate_tokens(decoder, params, [[1], []]), "prompt 1 is empty"),
        (lambda: generate_tokens(decoder, params, [[1, decoder.config.vocab_size]]), "outside the vocabulary"),
        (lambda: generate_tokens(decoder, params, [[1]], adapter=adapters), "need one prompt"),
        (lambda: list(stream(decoder, params, [1], adapter=adapters)), "index it first"),
        (lambda: Sampling(0), "max_new_tokens"),
        (lambda: Sampling(temperature=-1.0), "temperature"),
        (lambda: Sampling(top_p=0.0), "top_p"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
    assert generate_tokens(decoder, params, []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_the_same_where_numbers_have_64_bits_by_default(base, temperature):
    """As with JAX_ENABLE_X64=1. What is drawn may differ there, and need only be repeated."""
    adapters = random_adapters(2, base[0].config.lora_spec(rank=2))
    sampling = Sampling(NEW, temperature, 0.9)
    expected = generate_tokens(*base, PROMPTS[:2], adapter=adapters, sampling=sampling)
    with jax.enable_x64(True):
        found = generate_tokens(*base, PROMPTS[:2], adapter=adapters, sampling=sampling)
        streamed = list(stream(*base, PROMPTS[0], adapter=adapters[0], sampling=sampling))
    assert streamed == found[0]
    assert temperature or found == expected
