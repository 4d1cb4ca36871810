"""Bodies are what OpenAI's clients send; what is not honoured is refused by name."""

import json

import pytest

from t2l_jax.serving.http import Refused
from t2l_jax.serving.schemas import ChatCompletion, LoadAdapter, NewAdapter, TextCompletion, UnloadAdapter, parsed

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}


def chat(**changes):
    return parsed(ChatCompletion, json.dumps(CHAT | changes).encode())


def text(**changes):
    return parsed(TextCompletion, json.dumps(TEXT | changes).encode())


def test_defaults():
    body = chat()
    assert (body.temperature, body.top_p, body.n, body.seed, body.stops, body.stream) == (1.0, 1.0, 1, None, (), False)
    assert (body.max_tokens, body.best, body.stream_options.include_usage) == (None, None, False)
    assert (text().prompts, text().echo, text().best) == (["hi"], False, None)


def test_what_is_asked_for():
    body = chat(temperature=0, stop="x", logprobs=True, top_logprobs=3, max_completion_tokens=7, seed=-1)
    assert (body.temperature, body.stops, body.best, body.max_completion_tokens) == (0, ("x",), 3, 7)
    assert chat(stop=["a", "b"]).stops == ("a", "b")
    assert chat(logprobs=True).best == 0
    assert text(logprobs=0).best == 0
    assert text(max_tokens=0, echo=True).max_tokens == 0
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = chat(messages=[{"role": "developer", "content": parts, "name": "x"}, *CHAT["messages"]]).messages
    assert [turn.plain() for turn in turns] == [{"role": "system", "content": "ab"}, *CHAT["messages"]]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]]), ([], [[]])],
)
def test_prompts_are_texts_or_tokens(prompt, prompts):
    if prompt == []:
        assert text(prompt=prompt).prompts == [[]]
    else:
        assert text(prompt=prompt).prompts == prompts


def test_null_is_the_same_as_nothing_and_harmless_fields_are_ignored():
    body = chat(user="me", metadata={"a": 1}, tools=None, seed=None, frequency_penalty=0, logit_bias={}, n=None)
    assert body == chat()
    assert chat(response_format={"type": "text"}, tools=[], presence_penalty=0.0, top_k=-1) == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]), ("response_format", {"type": "json_object"}), ("logit_bias", {"5": 1}),
        ("frequency_penalty", 0.1), ("presence_penalty", -1), ("top_k", 5), ("min_tokens", 5), ("functions", [1]),
        ("suffix", "x"), ("best_of", 3), ("temprature", 0), ("prompt", "x"), ("x" * 500, 1),
    ],
)  # fmt: skip
def test_fields_that_are_not_honoured_are_refused_by_name(field, value):
    with pytest.raises(Refused) as caught:
        chat(**{field: value})
    assert caught.value.status == 400
    assert caught.value.param == field[:80]
    assert field[:80] in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5), ("model", ""), ("model", "x" * 30_000), ("messages", []), ("messages", "hi"),
        ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": "user"}]), ("messages", [5]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("messages", [{"role": "assistant", "content": "", "tool_calls": [{}]}]),
        ("messages", 2000 * CHAT["messages"]), ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", "5"),
        ("temperature", -1), ("temperature", 2.5), ("temperature", True), ("top_p", 0), ("top_p", 1.1), ("n", 0),
        ("n", 17), ("seed", 2**63), ("seed", 0.5), ("stop", ["a"] * 5), ("stop", [""]), ("stop", "x" * 257),
        ("stream", "yes"), ("stream_options", 1), ("logprobs", 1), ("top_logprobs", 21),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_or_size_name_the_field(field, value):
    with pytest.raises(Refused) as caught:
        chat(**{field: value})
    assert (caught.value.status, caught.value.param) == (400, field)
    assert field in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("prompt", [5, [""] * 129, [1, "a"], [[1], "a"], [-1], [2**31], [[1.5]], {"a": 1}, [[]] * 129])
def test_prompts_that_are_none(prompt):
    with pytest.raises(Refused, match="prompt"):
        text(prompt=prompt)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"5", b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"null"],
)
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(Refused, match="the body"):
        parsed(ChatCompletion, data)


def test_numbers_that_json_can_write_and_nobody_means():
    for number in ("NaN", "Infinity", "1e999", "-1e999"):
        with pytest.raises(Refused, match="temperature"):
            parsed(ChatCompletion, json.dumps(CHAT)[:-1].encode() + f', "temperature": {number}}}'.encode())


def test_bodies_about_adapters():
    made = parsed(NewAdapter, b'{"name": "x", "mix": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": -1}]}')
    assert [(share.name, share.weight) for share in made.mix] == [("a", 0.5), ("b", -1)]
    assert parsed(NewAdapter, b'{"name": "x", "description": "Say two."}').mix is None
    assert parsed(LoadAdapter, b'{"lora_name": "x", "lora_path": "a/b", "load_inplace": true}').load_inplace
    assert parsed(UnloadAdapter, b'{"lora_name": "x", "lora_int_id": 3}').lora_name == "x"
    for data in (b'{"name": " "}', b'{"name": "x", "mix": []}', b'{"name": "x", "mix": [{"name": "a", "weight": 17}]}'):
        with pytest.raises(Refused):
            parsed(NewAdapter, data)
