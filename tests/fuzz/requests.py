"""Requests that no client should send, made from good ones by a seed."""

import json
import random
from dataclasses import dataclass, replace
from urllib.parse import quote

BASE = "org/tiny"
MESSAGES = [{"role": "user", "content": "say the last word"}]
WEIRD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, 1e308, "", " ", "x", "t2l:", "t2l:Say two.", BASE,
    "../../etc/passwd", "/etc/passwd", "a\0b", "\U0001f600" * 50, "é", "x" * 5000, [], [[]], [[[]]], {}, {"a": {}},
    [None], [1, "a"], ["a"] * 200, [0] * 3000,
    [{"role": "user"}], {"type": "json_object"}, "%s%n", "{{7*7}}", "\r\nX: y", "t2l:one\ntwo",
]  # fmt: skip
GOOD = {
    "/v1/chat/completions": {
        "model": BASE, "messages": MESSAGES, "max_tokens": 2, "temperature": 0, "top_p": 1, "n": 1, "seed": 0,
        "stop": ["x"], "stream": False, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1,
    },
    "/v1/completions": {
        "model": BASE, "prompt": "say the", "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 1, "n": 1,
        "stream": False,
    },
    "/v1/adapters": {"name": "new", "description": "Say two.", "mix": [{"name": "new", "weight": 1}]},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "one", "load_inplace": True},
    "/v1/unload_lora_adapter": {"lora_name": "x"},
}  # fmt: skip
PATHS = (
    "/v1/adapters/{}", "/v1/adapters/{}/peft.zip", "/v1/adapters/{}/adapter.gguf", "/v1/adapters/{}/norms",
    "/v1/adapters/{}/nearest", "/v1/models/{}", "/v1/{}", "/{}", "/v1/adapters/new/{}",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")


@dataclass(frozen=True)
class Wrong:
    """A request."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, bytes], ...] = ()


def make(seed: int, archive: bytes) -> Wrong:
    """The request of a seed; `archive` is a good upload."""
    rng = random.Random(seed)
    path = rng.choice(list(GOOD))
    request = Wrong("POST", path, _body(rng, GOOD[path]))
    kind = rng.randrange(8)
    if kind == 0:  # bytes instead of JSON
        request = replace(request, body=_damaged(rng, request.body))
    elif kind == 1:  # another place
        name = rng.choice([str(each) for each in WEIRD] + ["new", "..", "%2e%2e%2f", "a/b"])[:300]
        where = rng.choice(PATHS).format(quote(name, safe=rng.choice(["", "/"]), errors="replace"))
        request = Wrong(rng.choice(METHODS), where, rng.choice([b"", request.body]))
    elif kind == 2:  # an upload
        request = Wrong("PUT", f"/v1/adapters/up{seed}/peft.zip", _damaged(rng, archive))
    elif kind == 3:  # headers
        names = ("Content-Type", "Authorization", "Accept", "Content-Encoding", "Origin", "X-Forwarded-For", "Range")
        value = rng.choice([b"", b"\xff\xfe", b"gzip", b"Bearer", b"bytes=0-", b"x" * 4000, b"application/xml"])
        request = replace(request, headers=((rng.choice(names), value),))
    elif kind == 4:  # nested
        depth = rng.choice([50, 500, 5000, 100_000])
        request = replace(request, body=rng.choice([b"[", b'{"a":']) * depth)
    return request


def _body(rng: random.Random, good: dict) -> bytes:
    """A good body with one to three of its fields changed, left out or joined by others."""
    body = dict(good)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*good, "tools", "logit_bias", "response_format", "user", "unknown", "max_completion_tokens"])
        if rng.random() < 0.2:
            body.pop(name, None)
        elif name == "messages" and rng.random() < 0.5:
            body[name] = [{"role": rng.choice(["user", "system", "tool", 5]), "content": rng.choice(WEIRD)}]
        else:
            body[name] = rng.choice(WEIRD)
    return json.dumps(body).encode()


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, taken out, put in, or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(out) + 1)
        change = rng.randrange(4)
        if change == 0 and place < len(out):
            out[place] = rng.randrange(256)
        elif change == 1:
            del out[place : place + rng.randint(1, 20)]
        elif change == 2:
            out[place:place] = rng.randbytes(rng.randint(1, 20))
        elif change == 3 and rng.random() < 0.3:
            del out[place:]
    return bytes(out)
