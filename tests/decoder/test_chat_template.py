"""Prompts against transformers' own `apply_chat_template`, with templates of every temper."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_templates import REFUSES_SYSTEM, with_template

from t2l_jax.decoder import chat_template
from t2l_jax.decoder.chat_template import MANY, prompt_texts, render, render_turns
from t2l_jax.decoder.template_process import TemplateProcess
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve

LIST = "tiger, apple, hammer, blue, piano"
CONVERSATION = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(resolve(smollm2))


def test_instance_only_is_the_chat_template_around_the_instance(tokenizer):
    text = tokenizer.decode(render(tokenizer, LIST))
    assert text == (f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{LIST}<|im_end|>\n<|im_start|>assistant\n")


def test_instruction_stands_before_the_instance_after_a_blank_line(tokenizer):
    text = tokenizer.decode(render(tokenizer, LIST, "Give the animal."))
    assert f"<|im_start|>user\nGive the animal.\n\n{LIST}<|im_end|>" in text


@pytest.mark.parametrize("instruction", [None, "Give the animal."])
def test_tokens_are_those_of_transformers(tokenizer, instruction):
    content = LIST if instruction is None else f"{instruction}\n\n{LIST}"
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert render(tokenizer, LIST, instruction) == expected
    alone = tokenizer.apply_chat_template(turns[1:], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert (len(alone), len(expected)) == ((40, 24) if instruction is None else (46, 30))


def test_a_conversation_follows_an_empty_system_turn_or_none(tokenizer):
    turns = [{"role": "system", "content": ""}, *CONVERSATION]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert render_turns(tokenizer, CONVERSATION) == expected
    refusing = with_template(tokenizer, REFUSES_SYSTEM)
    assert refusing.decode(render_turns(refusing, CONVERSATION)) == "<user>one<assistant>two<user>three<model>"


def test_template_that_refuses_a_system_turn_gets_none(tokenizer):
    refusing = with_template(tokenizer, REFUSES_SYSTEM)
    assert refusing.decode(render(refusing, LIST)) == f"<user>{LIST}<model>"


def test_many_conversations_are_rendered_as_each_alone(tokenizer):
    """Some are refused with a system turn, and come without it."""
    picky = with_template(
        tokenizer, REFUSES_SYSTEM.replace("'system' %}", "'system' and 'b' in messages[1].content %}")
    )
    inputs = [f"{letter} {number}" for number in range(MANY) for letter in "ab"]
    texts = prompt_texts(picky, inputs, [None] * len(inputs))
    assert texts[:3] == ["<system><user>a 0<model>", "<user>b 0<model>", "<system><user>a 1<model>"]
    assert texts == [prompt_texts(picky, [text], [None])[0] for text in inputs[:4]] + texts[4:]
    assert len(texts) == len(set(texts)) == 2 * MANY


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no') }}", "no"),
        (r"{{ raise_exception('a\nb\r\nc') }}", "TemplateError: a b c$"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'x' %}", "no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}x", "Range too big"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% if %}", "Expected an expression"),
        ("{{ " + "(" * 10_000, "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ 'a' | center(10 ** 12) }}", "MemoryError"),
        ("{{ 'a' * (2 ** 24 + 1) }}", "writes more than 16,777,216 characters"),
    ],
)
def test_a_template_that_fails_is_named_whatever_it_raises(tokenizer, template, reason):
    with pytest.raises(
        UserError, match=f"the chat template of {tokenizer.name_or_path} refuses the prompt: .*{reason}"
    ):
        render(with_template(tokenizer, template), LIST)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 8) }}",  # one operation of Python's
    ],
)
def test_a_template_that_does_not_end_is_ended_in_any_thread(monkeypatch, tokenizer, template):
    process = TemplateProcess(seconds=0.2)
    monkeypatch.setattr(chat_template, "PROCESS", process)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(UserError, match=r"the chat template of .* does not end within 0\.2 seconds"):
            pool.submit(render, with_template(tokenizer, template), LIST).result()
        assert pool.submit(render, tokenizer, LIST).result() == render(tokenizer, LIST)  # the next one is served
    process.close()


def test_of_named_templates_the_default_is_taken_if_there_is_one(tokenizer):
    named = with_template(tokenizer, {"default": tokenizer.chat_template, "rag": "x"})
    assert render(named, LIST) == render(tokenizer, LIST)
    with pytest.raises(UserError, match="has the chat templates rag, tool_use, and none named default"):
        render(with_template(tokenizer, {"tool_use": "x", "rag": "y"}), LIST)
    with pytest.raises(UserError, match="must be a text, got 7"):
        render(with_template(tokenizer, 7), LIST)


def test_text_that_is_no_utf_8_is_refused(tokenizer):
    with pytest.raises(UserError, match="half of a UTF-16 surrogate pair, or bytes that are not UTF-8"):
        render(tokenizer, "a\udcff")


def test_a_tokenizer_that_fails_is_named(tokenizer):
    damaged = copy.deepcopy(tokenizer)
    damaged.model_max_length = "long"  # as a tokenizer_config.json may say
    with pytest.raises(UserError, match=r"the tokenizer of .* fails \(.*'str'.*\); download the model again"):
        render(damaged, "red")


def test_no_chat_template(tokenizer):
    with pytest.raises(UserError, match="no chat template: use an instruct model"):
        render(with_template(tokenizer, None), LIST)
