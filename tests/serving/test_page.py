"""The page's files, as a browser gets them. What they do is tested in a real one: tests/programs/test_page.py."""

import re
from html.parser import HTMLParser

import pytest

from t2l_jax.serving import page


class Parsed(HTMLParser):
    """What a page says of its elements."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.labels, self.inline = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.labels += [found["for"]] if tag == "label" and "for" in found else []
        self.links += [found[name] for name in ("src", "href") if name in found]
        self.inline += [name for name in found if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("key", [None, "secret"])
def test_the_page_and_all_that_it_loads_come_from_the_server_without_a_key(serve, key):
    client = serve(key=key)
    reply = client.get("/")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert ("frame-ancestors 'none'" in policy) == (key is None)
    for link in Parsed(reply.text).links:
        assert link.startswith(("/", "data:image/"))
        if link.startswith("/"):
            assert link in page.PATHS
            assert client.get(link).headers["x-content-type-options"] == "nosniff"
    for path in page.PATHS:
        if path.endswith(".js"):
            script = client.get(path)
            assert script.headers["content-type"].startswith("text/javascript")
            assert set(re.findall(r'from "\.(/[\w.]+)"', script.text)) <= page.PATHS


def test_what_the_script_looks_for_is_in_the_page(client):
    parsed, script = Parsed(client.get("/").text), client.get("/page.js").text
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert set(re.findall(r'\$\("#([\w-]+)', script)) <= set(parsed.ids)
    assert {f"{name}-template" for name in ("task", "turn", "answer")} <= set(parsed.ids)
    assert set(parsed.labels) <= set(parsed.ids)
    assert not parsed.inline  # the policy would not let it run


def test_the_endpoints_of_the_script_exist(client):
    made = client.post("/v1/adapters", json={"description": "Say two."}).json()
    assert made["id"] == "t2l:Say two."
    paths = re.findall(r'at\(name, "(/\w+)"\)', client.get("/api.js").text)
    assert paths == ["/norms", "/nearest"]
    parts = re.findall(r'data-file="([\w.]+)"', client.get("/").text)
    for path in [*paths, *{f"/{part}" for part in parts}]:
        assert client.get(f"/v1/adapters/t2l%3ASay%20two./{path[1:]}").status_code == 200
    assert client.get("/v1/examples").json() == {"base": "org/tiny", "examples": []}
