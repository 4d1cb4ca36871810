"""Prompts against transformers' own `apply_chat_template`, with templates of every temper."""

import pytest
from chat_templates import REFUSES_SYSTEM, with_template

from t2l_jax.decoder.chat_template import render, render_turns
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


def test_a_template_that_refuses_every_turn_is_named(tokenizer):
    with pytest.raises(UserError, match=r"the chat template of .* refuses the prompt: no"):
        render(with_template(tokenizer, "{{ raise_exception('no') }}"), LIST)


def test_no_chat_template(tokenizer):
    with pytest.raises(UserError, match="no chat template: use an instruct model"):
        render(with_template(tokenizer, None), LIST)
