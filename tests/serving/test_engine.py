"""Jobs that decode together get what each would get alone, whatever comes and goes beside them."""

import threading
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import save_tiny

from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.generation import Sampling, generate_tokens, stream
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.lora import LoraSpec, dense_delta, init_adapter
from t2l_jax.serving import engine as engine_module
from t2l_jax.serving.engine import Busy, Engine, Job, Limits, fitted

WAIT = 60.0
FOUR = Limits(rows=4, context=128, slots=4 * 128)


@dataclass
class Heard:
    """What a job is told, and the means to wait for its end."""

    scores: list = field(default_factory=list)
    prompt: list = field(default_factory=list)
    reason: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, scores, reason):
        assert self.reason is None, "called after its end"
        self.scores += scores
        self.begun.set()
        if reason is not None:
            self.reason = reason
            self.ended.set()

    @property
    def tokens(self):
        return [score.token for score in self.scores]

    def result(self):
        assert self.ended.wait(WAIT)
        return self.tokens


@pytest.fixture(scope="module", params=["smollm2, tied head", "gemma 3"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(request.param, folder)
    config, params = load_base(resolve(folder))
    return Decoder(config), params


@pytest.fixture(scope="module")
def adapters(base):
    spec = base[0].config.lora_spec(rank=2)
    keys = jax.random.split(jax.random.key(0), 8)
    return [
        jax.tree.map(lambda leaf, key=key: leaf + 0.1 * jax.random.normal(key, leaf.shape), init_adapter(key, spec))
        for key in keys
    ]


@pytest.fixture
def start(base, monkeypatch):
    """Make an engine that ends with the test; its ring is as small as can be."""
    monkeypatch.setattr(engine_module, "FEWEST_SLOTS", 16)
    engines = []

    def make(limits=FOUR, stop_ids=(), rank=2):
        engines.append(Engine(*base, stop_ids, base[0].config.lora_spec(rank=rank), limits))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close(drain=False)
        assert not engine.alive


def submit(engine, prompt, **options):
    heard = Heard()
    return engine.submit(Job(prompt, heard, **options)), heard


def fail(*arguments):
    raise RuntimeError("out of memory")


def prompt_of(index, length):
    return [1 + (7 * index + 3 * place) % 90 for place in range(length)]


def test_what_decodes_together_is_what_decodes_alone(base, adapters, start):
    """Ten jobs for four rows: of many lengths, so that some join and leave while others go on and the ring turns."""
    engine = start()
    jobs = [
        (prompt_of(index, length), None if index == 3 else adapters[index % 8], count)
        for index, (length, count) in enumerate(
            [(3, 40), (20, 5), (1, 9), (7, 60), (33, 12), (2, 1), (16, 30), (60, 4), (5, 25), (9, 90)]
        )
    ]
    heard = [submit(engine, prompt, adapter=adapter, max_tokens=count)[1] for prompt, adapter, count in jobs]
    for (prompt, adapter, count), one in zip(jobs, heard, strict=True):
        (alone,) = generate_tokens(*base, [prompt], adapter=adapter, sampling=Sampling(count))
        assert one.result() == alone
        assert one.reason == "length"
    assert engine.counts.jobs == 10
    assert engine.counts.new_tokens == sum(count for _, _, count in jobs)
    assert engine.counts.steps < engine.counts.new_tokens


def test_drawn_tokens_are_those_of_the_seed_alone(base, adapters, start):
    engine = start()
    options = [(0.7, 1.0, 3), (0.0, 1.0, 0), (1.3, 0.8, 4), (1.0, 0.5, 3)]
    heard = [
        submit(engine, [5, 6, 7], adapter=adapters[0], max_tokens=20, temperature=t, top_p=p, seed=seed)[1]
        for t, p, seed in options
    ]
    for (temperature, top_p, seed), one in zip(options, heard, strict=True):
        sampling = Sampling(20, temperature, top_p)
        alone = stream(*base, [5, 6, 7], adapter=adapters[0], sampling=sampling, key=jax.random.key(seed))
        assert one.result() == list(alone)


def test_a_stop_token_ends_a_row_and_is_its_last(base, start):
    (alone,) = generate_tokens(*base, [[5, 9]], sampling=Sampling(12))
    stop = alone[3]
    engine = start(stop_ids=(stop,))
    _, heard = submit(engine, [5, 9], max_tokens=12)
    assert heard.result() == alone[: alone.index(stop) + 1]
    assert heard.reason == "stop"
    _, heard = submit(engine, [5, 9], max_tokens=12, ignore_stops=True)
    assert (heard.result(), heard.reason) == (alone, "length")


def test_log_probabilities_are_those_of_the_model(base, adapters, start):
    decoder, params = base
    engine = start()
    prompt = prompt_of(2, 21)
    heard, read = Heard(), []
    engine.submit(Job(prompt, heard, adapters[1], max_tokens=6, logprobs=True, on_prompt=read.extend))
    _, without = submit(engine, prompt, adapter=adapters[2], max_tokens=6)
    tokens = [*prompt, *heard.result()]
    hidden, _ = decoder.apply({"params": params}, jnp.asarray(tokens), adapters[1])
    expected = np.asarray(jax.nn.log_softmax(logits(decoder.config, params, hidden)))
    scores = [*read, *heard.scores]
    assert [score.token for score in scores] == tokens
    assert (scores[0].logprob, scores[0].best) == (0.0, ())
    for before, score in zip(expected, scores[1:], strict=False):
        assert score.logprob == pytest.approx(before[score.token], abs=1e-4)
        assert [token for token, _ in score.best] == np.argsort(-before, kind="stable")[:20].tolist()
        assert [value for _, value in score.best] == pytest.approx(np.sort(before)[::-1][:20].tolist(), abs=1e-4)
    assert without.result()
    assert {(score.logprob, score.best) for score in without.scores} == {(0.0, ())}


def test_a_cancelled_job_hears_nothing_more_and_its_row_is_free(start):
    engine = start(Limits(rows=1, context=128, slots=128))
    ticket, first = submit(engine, [5], max_tokens=120)
    _, second = submit(engine, [6], max_tokens=2)
    assert first.begun.wait(WAIT)
    ticket.cancel()
    assert len(second.result()) == 2
    assert len(first.tokens) < 120
    assert first.reason is None


def test_a_job_that_is_late_ends(start):
    engine = start(Limits(rows=1, context=128, slots=128))
    _, heard = submit(engine, [5], until=time.monotonic() - 1)
    assert heard.result() == []
    assert heard.reason == "late"


def test_a_full_queue_is_busy(start):
    engine = start(Limits(rows=1, context=128, slots=128, queue=2))
    _, running = submit(engine, [5], max_tokens=120)
    assert running.begun.wait(WAIT)
    waiting = [submit(engine, [5], max_tokens=2)[1] for _ in range(2)]
    with pytest.raises(Busy):
        submit(engine, [5])
    assert (engine.active, engine.waiting) == (1, 2)
    assert [len(heard.result()) for heard in waiting] == [2, 2]


def test_closing_it_drains_or_drops(start):
    engine = start()
    heard = [submit(engine, [5 + index], max_tokens=30)[1] for index in range(6)]
    engine.close(drain=True)
    assert [len(one.tokens) for one in heard] == [30] * 6
    with pytest.raises(Busy):
        submit(engine, [5])
    dropped = start()
    _, one = submit(dropped, [5], max_tokens=120)
    assert one.begun.wait(WAIT)
    dropped.close(drain=False)
    assert one.reason == "error"


def test_jobs_wait_until_the_cache_has_room_for_them(start):
    """Two long ones do not fit together, a long one and a short one do not either."""
    engine = start(Limits(rows=4, context=64, slots=64))
    heard = [submit(engine, [5], max_tokens=count)[1] for count in (63, 60, 3)]
    assert [len(one.result()) for one in heard] == [63, 60, 3]
    assert engine._ring.cache.positions.size <= 64


def test_a_step_that_fails_ends_its_jobs_and_the_next_are_served(start, monkeypatch):
    engine = start()

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "advance", fail)
        _, heard = submit(engine, [5], max_tokens=3)
        assert heard.ended.wait(WAIT)
    assert heard.reason == "error"
    assert len(submit(engine, [5], max_tokens=3)[1].result()) == 3


def test_prompts_that_cannot_be_read_end_their_own_jobs_only(start, monkeypatch):
    engine = start()
    _, first = submit(engine, [5], max_tokens=100)
    assert first.begun.wait(WAIT)

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "read", fail)
        _, second = submit(engine, [6], max_tokens=3)
        assert second.ended.wait(WAIT)
    assert (second.reason, second.tokens) == ("error", [])
    assert len(first.result()) == 100


def test_what_cannot_be_decoded_is_refused(base, adapters, start):
    engine = start()
    with pytest.raises(UserError, match="the prompt is empty"):
        submit(engine, [])
    with pytest.raises(UserError, match="max_tokens is 0: ask for at least one"):
        submit(engine, [1], max_tokens=0)
    with pytest.raises(UserError, match="100 tokens and max_tokens is 29, together more than the 128"):
        submit(engine, [1] * 100, max_tokens=29)
    with pytest.raises(UserError, match="outside the vocabulary"):
        submit(engine, [10**6])
    with pytest.raises(UserError, match="rank is 3, and this server's at most 2: compress it"):
        submit(engine, [1], adapter=init_adapter(jax.random.key(0), base[0].config.lora_spec(rank=3)))
    with pytest.raises(UserError, match="the adapter changes o_proj of"):
        submit(engine, [1], adapter=init_adapter(jax.random.key(0), base[0].config.lora_spec(("o_proj",), rank=2)))
    with pytest.raises(UserError, match="cannot hold a completion of 100"):
        start(Limits(context=100, slots=64))


def test_a_smaller_adapter_fits_with_the_same_deltas(base, adapters):
    config = base[0].config
    small = config.lora_spec(("v_proj",), rank=1, alpha=3.0, rslora=False)
    own = jax.tree.map(lambda leaf: leaf + 0.3, init_adapter(jax.random.key(1), small))
    spec: LoraSpec = config.lora_spec(rank=4, alpha=7.0)
    found = fitted(own, spec)
    assert found.spec == spec
    deltas = dense_delta(found)
    np.testing.assert_allclose(deltas["v_proj"], dense_delta(own)["v_proj"], rtol=1e-5)
    assert not np.any(deltas["q_proj"])
    assert fitted(adapters[0], adapters[0].spec) is adapters[0]
