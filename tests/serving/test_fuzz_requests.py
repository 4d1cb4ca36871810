"""No request makes the server fail: some hundred here, ten thousand in `-m long`."""

import gc
from collections import Counter
from pathlib import Path

import jax
import pytest
from fuzz import requests
from tiny_published import SPEC

from t2l_jax.io.peft import save_peft
from t2l_jax.lora import init_adapter
from t2l_jax.serving.adapters import Entry, to_zip

SHORT = 300


@pytest.fixture
def target(serve, tmp_path):
    """A server, and a good upload for it."""
    adapter = init_adapter(jax.random.key(0), SPEC)
    save_peft(adapter, tmp_path / "opened" / "one")
    return serve(folder=tmp_path / "opened", most=8), to_zip(Entry("one", adapter, "upload"), "org/tiny")


def attack(client, archive, seeds):
    """Send the requests of these seeds: how often each status came back. Fails for a status of 500 or more."""
    found = Counter()
    for seed in seeds:
        wrong = requests.make(seed, archive)
        reply = client.request(wrong.method, wrong.path, content=wrong.body, headers=list(wrong.headers))
        found[reply.status_code] += 1
        assert reply.status_code < 500, (seed, wrong, reply.text)
        if reply.status_code >= 400 and wrong.method != "HEAD":
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, (seed, wrong)
            assert len(reply.content) < 2000, (seed, wrong)
        for name in [entry.name for entry in client.server.registry.named() if entry.name != "new"]:
            client.server.registry.remove(name)
    return found


def resident():
    """Memory in use, in MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def test_malformed_requests_are_refused(target):
    client, archive = target
    found = attack(client, archive, range(SHORT))
    assert found[200] > 5  # some are good
    assert found[400] > SHORT // 2
    assert client.get("/health").status_code == 200
    assert (client.server.engine.active, client.server.engine.waiting) == (0, 0)


def test_a_request_that_fails_is_found(target, monkeypatch):
    client, archive = target
    monkeypatch.setattr(type(client.server.engine), "check", lambda *_: 1 / 0)
    with pytest.raises(AssertionError):
        attack(client, archive, range(SHORT))


@pytest.mark.long
def test_ten_thousand_requests(target):
    client, archive = target
    found = attack(client, archive, range(10**6, 10**6 + 2_000))  # what is compiled or cached on first use
    before = resident()
    found += attack(client, archive, range(2_000, 12_000))
    after = resident()
    print(f"{dict(sorted(found.items()))}, {before:.0f} MB before, {after:.0f} MB after")
    assert after < before + 30
