"""Answers against `generate_tokens` on one prompt at a time, whatever the batches; near ties are decided alone."""

import jax
import numpy as np
import pytest
from tiny_published import SPEC, save_base

from t2l_jax.decoder.generation import Sampling, generate_tokens, greedy, pad_prompts
from t2l_jax.evaluation import engine
from t2l_jax.evaluation.engine import Query, Source, answer_all
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, init_adapter

END = 1


def adapter(name):
    key = jax.random.key(sum(name.encode()))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape), init_adapter(key, SPEC))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM.load(str(save_base(tmp_path_factory.mktemp("base"))))


@pytest.fixture
def sources(llm):
    def fetch(names):
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *map(adapter, names))

    return {
        "base": Source("base", llm.params),
        "shared": Source("shared", llm.params, adapter("shared")),
        "named": Source("named", llm.params, fetch=fetch),
    }


def make_queries():
    """Every source, prompts of 2 to 8 tokens (one bucket, and one after a segment), answers of 3 to 30, and choices."""
    rng = np.random.default_rng(0)
    queries = []
    for number in range(18):
        source = ("base", "shared", "named")[number % 3]
        prompt = rng.integers(2, 25, rng.integers(2, 9)).astype(np.int32)
        picks = tuple(tuple(map(int, rng.integers(5, 25, n))) for n in (1, 2, 3)) if number % 4 == 0 else ()
        queries.append(Query(source, f"task{number % 5}", prompt, int(rng.choice([3, 30])), picks))
    return queries


def answers(llm, sources, queries, batch_tokens):
    found = [pair for batch in answer_all(llm, sources, queries, batch_tokens, END) for pair in batch]
    assert sorted(index for index, _ in found) == list(range(len(queries)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def alone(llm, query):
    """All answers are generated to one length and cut, so that this compiles once a source."""
    adapters = {"base": None, "shared": adapter("shared"), "named": adapter(query.adapter)}
    options = {"adapter": adapters[query.source], "stop_ids": llm.stop_ids, "sampling": Sampling(30)}
    return generate_tokens(llm.decoder, llm.params, [query.prompt.tolist()], **options)[0][: query.limit]


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_answers_are_those_of_each_prompt_alone_at_every_batch_size(llm, sources, batch_tokens):
    queries = make_queries()
    found = answers(llm, sources, queries, batch_tokens)
    assert {type(answer) for answer in found} == {int, list}
    assert any(len(answer) > 3 * engine.SEGMENT // 2 for answer in found if isinstance(answer, list))
    for query, answer in zip(queries, found, strict=True):
        if query.choices:
            whole = [likelihood(llm, query, pick) for pick in query.choices]
            assert answer == int(np.argmax(whole))
        else:
            assert answer == alone(llm, query)


def logits_of(llm, tokens, adapter=None):
    """Logits after each token, in one plain forward pass."""
    padded = np.pad(tokens, (0, 16 - len(tokens)))  # one length, one compilation; what comes after changes nothing
    return np.asarray(llm(padded[None], adapter)[0], np.float64)


def likelihood(llm, query, pick):
    """Log-probability of prompt + choice + end."""
    adapters: dict[str, Adapter | None] = {"base": None, "shared": adapter("shared"), "named": adapter(query.adapter)}
    whole = np.array([*query.prompt, *pick, END])
    logits = logits_of(llm, whole, adapters[query.source])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logp[i - 1, whole[i]] for i in range(len(query.prompt), len(whole)))


def test_rows_near_a_tie_are_asked_again_alone(llm, sources, monkeypatch):
    """With every row near a tie, every segment is asked once together and once alone."""
    queries = [query for query in make_queries() if not query.choices]
    expected = [alone(llm, query) for query in queries]
    sizes = []
    run = engine._run

    def spy(llm, source, shape, batch, end):
        sizes.append(sum(map(len, batch)))
        found, margins = run(llm, source, shape, batch, end)
        if sizes[-1] > 1:
            found = [[END] for _ in found]  # what the batch says must not count
        return found, margins

    monkeypatch.setattr(engine, "_run", spy)
    monkeypatch.setattr(engine, "TIE", np.inf)
    assert answers(llm, sources, queries, 4096) == expected
    assert sum(size for size in sizes if size > 1) <= sizes.count(1)


def test_margins_are_the_smallest_margin_of_a_rows_own_tokens(llm):
    """Against the logits of one plain forward pass over prompt and answer."""
    prompts = [[5, 6, 7], [9, 8]]
    tokens, lengths = pad_prompts([prompts], llm.config.vocab_size)
    limits = np.where(lengths > 0, [[6, 2]], 0).astype(np.int32)
    new, margins = greedy(llm.decoder, llm.params, tokens, lengths, limits, 6, None, ())
    for row, (prompt, limit) in enumerate(zip(prompts, (6, 2), strict=True)):
        written = [int(token) for token in new[0, row] if token >= 0]
        assert len(written) == limit
        scores = np.sort(logits_of(llm, [*prompt, *written[:-1]])[len(prompt) - 1 : len(prompt) - 1 + limit])
        assert float(margins[0, row]) == pytest.approx((scores[:, -1] - scores[:, -2]).min(), abs=1e-4)
