"""Completions are what the library answers, in OpenAI's form, whole and streamed."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2l_jax.decoder.generation import Sampling, generate_tokens

BASE = "org/tiny"
DESCRIBED = "t2l:Say two."
WORDS = "say the last word"


def post(client, path, **body):
    reply = client.post(f"/v1/{path}", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def chat(client, text=WORDS, **body):
    body = {"model": BASE, "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": text}]} | body
    return post(client, "chat/completions", **body)


def complete(client, prompt=WORDS, **body):
    return post(client, "completions", **{"model": BASE, "temperature": 0, "max_tokens": 6, "prompt": prompt} | body)


def events(client, path, **body):
    reply = client.post(f"/v1/{path}", json=body | {"stream": True})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = reply.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.fixture
def endless(serve):
    """A server on which no token stops a row."""
    return serve(stop_ids=())


@pytest.fixture(scope="module")
def adapter(model):
    return model.generate(["Say two."])[0]


def alone(llm, tokens, adapter=None, sampling=Sampling(6), seed=0):  # noqa: B008
    (row,) = generate_tokens(
        llm.decoder, llm.params, [tokens], adapter=adapter, sampling=sampling, key=jax.random.key(seed)
    )
    return row


def logprobs_of(llm, tokens, adapter=None):
    """The log probability of each possible token after each of these: [place, token]."""
    return np.asarray(jax.nn.log_softmax(llm(jnp.asarray([tokens], jnp.int32), adapter)[0]))


def test_chat_answers_as_the_library_does(client, llm, adapter):
    for name, own in ((BASE, None), (DESCRIBED, adapter)):
        body = chat(client, model=name)
        (choice,) = body["choices"]
        (expected,) = llm.chat([WORDS], adapter=own, sampling=Sampling(6))
        assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
        assert (choice["index"], choice["logprobs"]) == (0, None)
        assert choice["finish_reason"] in ("stop", "length")
        assert (body["object"], body["model"]) == ("chat.completion", name)
        prompt = len(llm.render(WORDS))
        assert body["usage"]["prompt_tokens"] == prompt
        assert body["usage"]["total_tokens"] == prompt + body["usage"]["completion_tokens"]
    assert llm.chat([WORDS], sampling=Sampling(6)) != llm.chat([WORDS], adapter=adapter, sampling=Sampling(6))


def test_a_conversation_with_a_system_turn_is_rendered_as_it_is(client, llm):
    turns = [{"role": "system", "content": "answer"}, {"role": "user", "content": "one"}]
    (expected,) = llm.chat([turns], sampling=Sampling(6))
    assert chat(client, messages=turns)["choices"][0]["message"]["content"] == expected
    developer = [{"role": "developer", "content": [{"type": "text", "text": "answer"}]}, turns[1]]
    assert chat(client, messages=developer)["choices"][0]["message"]["content"] == expected


def test_a_stop_token_ends_an_answer(serve, llm):
    row = alone(llm, llm.render(WORDS))
    client = serve(stop_ids=(row[3],))
    body = chat(client)
    assert body["choices"][0]["message"]["content"] == llm.tokenizer.decode(row[: row.index(row[3])])
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == row.index(row[3]) + 1
    assert chat(client, ignore_eos=True)["usage"]["completion_tokens"] == 6
    scored = complete(client, llm.render(WORDS), logprobs=1)["choices"][0]["logprobs"]
    assert len(scored["tokens"]) == row.index(row[3]) + 1  # lm-evaluation-harness counts on a score for it


def test_streams_say_the_same(endless):
    whole = chat(endless, model=DESCRIBED, n=2)
    body = {"model": DESCRIBED, "temperature": 0, "max_tokens": 6, "n": 2}
    messages = [{"role": "user", "content": WORDS}]
    found = events(endless, "chat/completions", messages=messages, stream_options={"include_usage": True}, **body)
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in found}) == 1
    assert [chunk["choices"][0]["delta"].get("role") for chunk in found[:3]] == ["assistant", "assistant", None]
    assert (found[-1]["choices"], found[-1]["usage"]) == ([], whole["usage"])
    assert {chunk["usage"] is None for chunk in found[:-1]} == {True}
    for index in range(2):
        own = [chunk["choices"][0] for chunk in found[:-1] if chunk["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in own)
        assert text == whole["choices"][index]["message"]["content"]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert len(own) > 3
    plain = events(endless, "completions", prompt=WORDS, **body)
    texts = ["".join(c["choices"][0]["text"] for c in plain if c["choices"][0]["index"] == i) for i in range(2)]
    assert texts == [choice["text"] for choice in complete(endless, model=DESCRIBED, n=2)["choices"]]
    assert all("usage" not in chunk for chunk in plain)


def test_log_probabilities_of_chat_are_those_of_the_model(endless, llm, adapter):
    choice = chat(endless, model=DESCRIBED, logprobs=True, top_logprobs=4)["choices"][0]
    prompt = llm.render(WORDS)
    row = alone(llm, prompt, adapter)
    expected = logprobs_of(llm, [*prompt, *row], adapter)[len(prompt) - 1 :]
    content = choice["logprobs"]["content"]
    assert [item["token"] for item in content] == [llm.tokenizer.decode([token]) for token in row]
    for item, token, scores in zip(content, row, expected, strict=False):
        assert item["logprob"] == pytest.approx(scores[token], abs=1e-4)
        assert bytes(item["bytes"]).decode() == item["token"]
        best = np.argsort(-scores, kind="stable")[:4]
        assert [top["token"] for top in item["top_logprobs"]] == [llm.tokenizer.decode([place]) for place in best]
        assert [top["logprob"] for top in item["top_logprobs"]] == pytest.approx(scores[best].tolist(), abs=1e-4)
    messages = [{"role": "user", "content": WORDS}]
    options = {"model": DESCRIBED, "temperature": 0, "max_tokens": 6, "logprobs": True}
    found = events(endless, "chat/completions", messages=messages, **options)
    streamed = [
        item
        for chunk in found
        if chunk["choices"][0]["logprobs"]
        for item in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [item["token"] for item in streamed] == [item["token"] for item in content]


def test_an_echo_scores_the_prompt_as_a_harness_wants_it(endless, llm, adapter):
    prompt = llm.tokenizer("one two red blue")["input_ids"]
    expected = logprobs_of(llm, prompt, adapter)
    for asked, count in ((0, 0), (1, 1)):
        body = complete(endless, prompt, model=DESCRIBED, echo=True, logprobs=1, max_tokens=asked)
        scored, text = body["choices"][0]["logprobs"], body["choices"][0]["text"]
        assert text.startswith("one two red blue")
        assert len(scored["tokens"]) == len(prompt) + count
        assert (scored["token_logprobs"][0], scored["top_logprobs"][0]) == (None, None)
        for place in range(1, len(prompt)):
            row = expected[place - 1]
            assert scored["token_logprobs"][place] == pytest.approx(row[prompt[place]], abs=1e-4)
            assert max(scored["top_logprobs"][place].values()) == pytest.approx(row.max(), abs=1e-4)
        assert body["usage"]["completion_tokens"] == count
        starts = scored["text_offset"]
        pieces = [text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        assert pieces == [token.strip() for token in scored["tokens"]]
    streamed = events(
        endless, "completions", model=DESCRIBED, prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == text
    scores = [value for chunk in streamed for value in chunk["choices"][0]["logprobs"]["token_logprobs"]]
    assert scores == scored["token_logprobs"]


def test_an_echo_without_scores_is_the_prompt_and_its_continuation(endless):
    plain = complete(endless)["choices"][0]["text"]
    assert complete(endless, echo=True)["choices"][0]["text"] == WORDS + plain
    streamed = events(endless, "completions", model=BASE, prompt=WORDS, echo=True, temperature=0, max_tokens=6)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == WORDS + plain
    assert complete(endless, echo=True, max_tokens=0)["choices"][0]["text"] == WORDS


def test_prompts_are_texts_or_tokens_one_or_several(endless, llm):
    texts = ["one two", "red", "say the last word"]
    rows = [llm.tokenizer(text)["input_ids"] for text in texts]
    expected = [llm.tokenizer.decode(alone(llm, row)) for row in rows]
    for prompt in (texts, rows):
        body = complete(endless, prompt)
        assert [choice["text"] for choice in body["choices"]] == expected
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (sum(map(len, rows)), 18)
    assert complete(endless, texts[0])["choices"][0]["text"] == complete(endless, rows[0])["choices"][0]["text"]


def test_n_choices_are_drawn_from_seeds_that_follow_each_other(endless, llm, adapter):
    body = chat(endless, model=DESCRIBED, n=3, seed=7, temperature=1.2, top_p=0.9)
    sampling = Sampling(6, 1.2, 0.9)
    expected = [llm.tokenizer.decode(alone(llm, llm.render(WORDS), adapter, sampling, 7 + index)) for index in range(3)]
    assert [choice["message"]["content"] for choice in body["choices"]] == expected
    assert len(set(expected)) == 3
    free = [chat(endless, temperature=2, max_tokens=20)["choices"][0]["message"]["content"] for _ in range(3)]
    assert len(set(free)) > 1


def test_stop_strings_end_an_answer_and_are_not_in_it(endless):
    text = complete(endless, max_tokens=12)["choices"][0]["text"]
    words = text.split()
    stop = f"{words[3][-2:]} {words[4][:2]}"  # across tokens
    expected = text[: text.index(stop)]
    body = complete(endless, max_tokens=12, stop=["nowhere", stop], logprobs=0)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    assert len(choice["logprobs"]["tokens"]) == len(expected.split())
    assert body["usage"]["completion_tokens"] < 12
    streamed = events(endless, "completions", model=BASE, prompt=WORDS, stop=stop, temperature=0, max_tokens=12)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == expected
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


def test_max_tokens_left_out_is_what_there_is_room_for(endless, llm):
    prompt = llm.render(WORDS)
    body = chat(endless, max_tokens=None)
    assert body["usage"]["completion_tokens"] == 64 - len(prompt)
    assert chat(endless, max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    assert complete(endless, max_tokens=None)["usage"]["completion_tokens"] == 16


def test_numbers_that_json_cannot_have(client):
    """An adapter so large that the logits are no numbers."""
    made = client.post("/v1/adapters", json={"name": "huge", "description": "Say two."})
    assert made.status_code == 201
    zipped = client.get("/v1/adapters/huge/peft.zip").content
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    weights = files["adapter_model.safetensors"]
    start = 8 + int.from_bytes(weights[:8], "little")
    large = np.full((len(weights) - start) // 4, 1e30, np.float32).tobytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (files | {"adapter_model.safetensors": weights[:start] + large}).items():
            archive.writestr(name, data)
    assert client.put("/v1/adapters/overflow/peft.zip", content=buffer.getvalue()).status_code == 201
    body = complete(client, model="overflow", logprobs=2)
    assert -9999.0 in body["choices"][0]["logprobs"]["token_logprobs"]
