"""Answers against `generate_tokens` on one prompt at a time, whatever the batches; near ties are decided alone."""

import jax
import numpy as np
import pytest
from tiny_published import SPEC, save_base

from t2l_jax.decoder.generation import Sampling, generate_tokens, greedy, pad_prompts
from t2l_jax.evaluation import engine
from t2l_jax.evaluation.engine import Answerer, Question, answer_all
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
def answerers(llm):
    def fetch(names):
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *map(adapter, names))

    return {
        "base": Answerer("base", llm.params),
        "shared": Answerer("shared", llm.params, adapter("shared")),
        "named": Answerer("named", llm.params, fetch=fetch),
    }


def make_queries():
    """Every source, prompts of 2 to 8 tokens (one bucket, and one after a segment), answers of 3 to 30, and choices."""
    rng = np.random.default_rng(0)
    questions = []
    for number in range(18):
        source = ("base", "shared", "named")[number % 3]
        prompt = rng.integers(2, 25, rng.integers(2, 9)).astype(np.int32)
        picks = tuple(tuple(map(int, rng.integers(5, 25, n))) for n in (1, 2, 3)) if number % 4 == 0 else ()
        questions.append(Question(source, f"task{number % 5}", prompt, int(rng.choice([3, 30])), picks))
    return questions


def answers(llm, answerers, questions, batch_tokens):
    found = [pair for batch in answer_all(llm, answerers, questions, batch_tokens, END) for pair in batch]
    assert sorted(index for index, _ in found) == list(range(len(questions)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def alone(llm, question):
    """All answers are generated to one length and cut, so that this compiles once a source."""
    adapters = {"base": None, "shared": adapter("shared"), "named": adapter(question.adapter)}
    options = {"adapter": adapters[question.weights], "stop_ids": llm.stop_ids, "sampling": Sampling(30)}
    return generate_tokens(llm.decoder, llm.params, [question.prompt.tolist()], **options)[0][: question.limit]


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_answers_are_those_of_each_prompt_alone_at_every_batch_size(llm, answerers, batch_tokens):
    questions = make_queries()
    found = answers(llm, answerers, questions, batch_tokens)
    assert {type(answer) for answer in found} == {int, list}
    assert any(len(answer) > 3 * engine.SEGMENT // 2 for answer in found if isinstance(answer, list))
    for question, answer in zip(questions, found, strict=True):
        if question.choices:
            whole = [likelihood(llm, question, pick) for pick in question.choices]
            assert answer == int(np.argmax(whole))
        else:
            assert answer == alone(llm, question)


def logits_of(llm, tokens, adapter=None):
    """Logits after each token, in one plain forward pass."""
    padded = np.pad(tokens, (0, 16 - len(tokens)))  # one length, one compilation; what comes after changes nothing
    return np.asarray(llm(padded[None], adapter)[0], np.float64)


def likelihood(llm, question, pick):
    """Log-probability of prompt + choice + end."""
    adapters: dict[str, Adapter | None] = {
        "base": None,
        "shared": adapter("shared"),
        "named": adapter(question.adapter),
    }
    whole = np.array([*question.prompt, *pick, END])
    logits = logits_of(llm, whole, adapters[question.weights])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logp[i - 1, whole[i]] for i in range(len(question.prompt), len(whole)))


def test_rows_near_a_tie_are_asked_again_alone(llm, answerers, monkeypatch):
    """With every row near a tie, every segment is asked once together and once alone."""
    questions = [question for question in make_queries() if not question.choices]
    expected = [alone(llm, question) for question in questions]
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
    assert answers(llm, answerers, questions, 4096) == expected
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
