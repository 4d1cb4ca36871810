"""The server's limits, and what happens when clients or the model fail."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from serving_calls import BASE, CHAT, answer, error

from t2l_jax.decoder.generation import Sampling, generate_tokens
from t2l_jax.serving import engine as engine_module
from t2l_jax.serving import http as http_module
from t2l_jax.serving.engine import Limits

ONE_ROW = Limits(rows=1, context=64, slots=64, queue=2)


@pytest.fixture
def held(monkeypatch):
    """Decoding waits until the event is set."""
    go = threading.Event()
    advance = engine_module.advance

    def wait(*arguments):
        assert go.wait(60)
        return advance(*arguments)

    monkeypatch.setattr(engine_module, "advance", wait)
    yield go
    go.set()


def until(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "[::1"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_use_a_server_without_a_key(client, headers, status):
    client.app._hosts = frozenset({"testserver"})
    reply = client.get("/v1/models", headers=headers)
    assert reply.status_code == status, reply.text
    if status == 403:
        assert reply.json()["error"]["type"] == "permission_error"


def test_a_key_opens_everything_but_health(serve):
    client = serve(key="secret é")
    assert client.get("/health").status_code == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": b"Bearer \xff"},
    ):
        for path in ("/v1/models", "/metrics", "/nowhere"):
            reply = client.get(path, headers=headers)
            assert "Authorization: Bearer" in error(reply, 401, None, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret é".encode()}).status_code == 200


def test_errors_are_in_the_clients_form(client):
    assert "does not exist" in error(
        client.post("/v1/completions", json={"model": "x", "prompt": "y"}), 404, "model", "model_not_found"
    )
    message = error(
        client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 64}), 400, "messages", "context_length_exceeded"
    )
    assert "together more than the 64 of this server" in message
    error(client.post("/v1/completions", json={"model": BASE, "prompt": ""}), 400, "prompt")
    error(client.post("/v1/completions", json={"model": BASE, "prompt": [25]}), 400, "prompt")
    error(client.post("/v1/completions", json={"model": BASE, "prompt": [[1]] * 3, "n": 16}), 400, "n")
    error(client.post("/v1/completions", json={"model": BASE, "prompt": "one", "max_tokens": 0}), 400, "max_tokens")
    error(client.post("/v1/completions", json={"model": "t2l: ", "prompt": "one"}), 400, "model")
    error(client.post("/v1/completions", content=b"{" + b" " * 2**20), 413, None, "too_large")
    error(client.post("/v1/completions", content=iter([b" " * 2**19] * 3)), 413, None, "too_large")
    error(client.get("/v1/completions"), 405)
    error(client.get("/nowhere"), 404)
    assert client.get("/health").json() == {"status": "ok"}


def test_a_full_queue_says_try_again(serve, held):
    client = serve(ONE_ROW)
    threads = [threading.Thread(target=answer, args=(client, BASE)) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine = client.server.engine
    until(lambda: (engine.active, engine.waiting) == (1, 2))
    for stream in (False, True):
        reply = client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        error(reply, 429, None, "queue_full")
        assert reply.headers["retry-after"] == "1"
    held.set()
    for thread in threads:
        thread.join(60)
    assert client.server.engine.counts.jobs == 3


def test_time_is_up(serve, held):
    client = serve(ONE_ROW, seconds=0.3)
    first = threading.Thread(target=answer, args=(client, BASE), kwargs={"max_tokens": 40})
    first.start()
    until(lambda: client.server.engine.active)
    replies = []
    second = threading.Thread(target=lambda: replies.append(client.post("/v1/chat/completions", json=CHAT)))
    second.start()
    until(lambda: client.server.engine.waiting)
    time.sleep(0.3)
    held.set()
    first.join(60)
    second.join(60)
    error(replies[0], 504, None, "timeout")
    assert client.server.engine.counts.new_tokens < 40


def test_a_model_that_fails_is_an_error_of_the_server(client, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "read", fail)
        assert "log says why" in error(client.post("/v1/chat/completions", json=CHAT), 500)
        streamed = client.post("/v1/chat/completions", json=CHAT | {"stream": True}).text.split("\n\n")
        assert json.loads(streamed[-3].removeprefix("data: "))["error"]["type"] == "server_error"
    with monkeypatch.context() as patch:
        patch.setattr(type(client.server.registry.model), "generate", fail)
        assert "log says why" in error(client.post("/v1/chat/completions", json=CHAT | {"model": "t2l:x"}), 500)
    assert "out of memory" in caplog.text
    assert answer(client, "t2l:x")


def leave(client, body, when):
    """Send a chat and go away as soon as `when` is true; what was sent until then."""
    sent = []

    async def talk():
        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
            "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http", "server": ("x", 80),
            "client": ("y", 1), "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while not when(sent):
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await client.app(scope, receive, send)

    client.portal.call(talk)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_rows(serve, stream):
    client = serve(Limits(rows=2, context=2048, slots=4096, queue=8), stop_ids=())
    engine = client.server.engine
    sent = leave(client, CHAT | {"max_tokens": 2000, "n": 3, "stream": stream}, lambda _: engine.counts.steps > 3)
    until(lambda: not engine.active and not engine.waiting)
    assert engine.counts.new_tokens < 1000
    assert sent[-1].get("body", b"") != b"data: [DONE]\n\n"
    assert answer(client, BASE)


def test_a_client_that_goes_away_before_its_adapter_is_written(client, monkeypatch):
    registry, go = client.server.registry, threading.Event()
    generate = type(registry.model).generate

    def slow(self, texts):
        assert go.wait(60)
        return generate(self, texts)

    monkeypatch.setattr(type(registry.model), "generate", slow)
    leave(client, CHAT | {"model": "t2l:Say two."}, lambda _: registry._pending)
    go.set()
    assert answer(client, "t2l:Say two.")
    assert registry.written == 1


def test_bodies_that_do_not_come_are_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(http_module, "BODY_SECONDS", 0.05)

    async def talk():
        sent = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        await client.app(scope, receive, send)
        return sent

    assert client.portal.call(talk)[0]["status"] == 408


def test_too_many_requests_at_once_are_turned_away(client):
    client.app._active = client.app._most
    error(client.get("/v1/models"), 429, None, "queue_full")
    assert client.get("/health").status_code == 200


def test_metrics_count(client):
    answer(client, "t2l:Say two.")
    client.get("/nowhere")
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["t2l_jobs_total"] == "1"
    assert lines["t2l_adapters_written_total"] == lines["t2l_adapters_cached"] == "1"
    assert lines['t2l_replies_total{status="404"}'] == "1"
    assert float(lines["t2l_generated_tokens_total"]) >= 1
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_requests_with_different_adapters_decode_together(serve, llm, model):
    client = serve(stop_ids=())
    texts = [f"Say {word}." for word in ("one", "two", "three", "four", "five", "six")]
    found = {}

    def ask(text):
        found[text] = answer(client, f"t2l:{text}", max_tokens=20)

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    prompt = llm.render("say the last word")
    adapters = model.generate(texts)
    rows = generate_tokens(llm.decoder, llm.params, [prompt] * 6, adapter=adapters, sampling=Sampling(20))
    assert [found[text] for text in texts] == [llm.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert np.sum([len(row) for row in rows]) > client.server.engine.counts.steps


def test_closing_finishes_what_runs(serve, held):
    client = serve(stop_ids=())
    found = []
    asking = threading.Thread(target=lambda: found.append(answer(client, BASE, max_tokens=10)))
    asking.start()
    until(lambda: client.server.engine.active)
    closing = threading.Thread(target=client.server.close)
    closing.start()
    until(lambda: client.server.engine._closing == "drain")
    error(client.post("/v1/chat/completions", json=CHAT), 429, None, "queue_full")
    held.set()
    asking.join(60)
    closing.join(60)
    assert len(found[0].split()) == 10
    assert client.get("/health").status_code == 503
