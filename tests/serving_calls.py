"""Calls of a server under test, and what its errors look like."""

BASE = "org/tiny"
CHAT = {"model": BASE, "messages": [{"role": "user", "content": "say the last word"}], "temperature": 0}


def error(reply, status, param=None, code=None):
    assert reply.status_code == status, reply.text
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert (found["param"], found["code"]) == (param, code)
    return found["message"]


def answer(client, model, **changes):
    reply = client.post("/v1/chat/completions", json=CHAT | {"model": model, "max_tokens": 5} | changes)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]
