import copy

import pytest

from t2l_jax.data import words
from t2l_jax.data.prompts import encode, render
from t2l_jax.data.tasks import Example
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer

LIST = "tiger, apple, hammer, blue, piano"
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<model>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(str(smollm2))


def with_template(tokenizer, template):
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


def test_instance_only_is_the_chat_template_around_the_instance(tokenizer):
    text = tokenizer.decode(render(tokenizer, LIST))
    assert text == (f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{LIST}<|im_end|>\n<|im_start|>assistant\n")


def test_instruction_stands_before_the_instance_after_a_blank_line(tokenizer):
    text = tokenizer.decode(render(tokenizer, LIST, "Give the animal."))
    assert f"<|im_start|>user\nGive the animal.\n\n{LIST}<|im_end|>" in text


@pytest.mark.parametrize(
    ("system", "words_of_it", "length"),
    [("", "", 24), (None, "You are a helpful AI assistant", 40), ("Hi.", "Hi.", 26)],
)
def test_system_turn(tokenizer, system, words_of_it, length):
    tokens = render(tokenizer, LIST, system=system)
    assert tokenizer.decode(tokens).startswith(f"<|im_start|>system\n{words_of_it}")
    assert len(tokens) == length


@pytest.mark.parametrize("system", ["", None, "Be brief."])
@pytest.mark.parametrize("instruction", [None, "Give the animal."])
def test_tokens_are_those_of_transformers(tokenizer, system, instruction):
    content = LIST if instruction is None else f"{instruction}\n\n{LIST}"
    turns = [{"role": "user", "content": content}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert render(tokenizer, LIST, instruction, system) == expected


def test_prompt_and_answer_are_the_whole_conversation(tokenizer):
    example = Example(LIST, '"TIGER"', ('"TIGER"',))
    ((prompt, answer),) = encode(tokenizer, [example])
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": LIST},
        {"role": "assistant", "content": '"TIGER"'},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert [*prompt, *answer] == whole[:-1]  # the template ends with a line feed after the end of the turn
    assert answer[-1] == tokenizer.eos_token_id


def test_instructions_are_dealt_out_in_turn(tokenizer):
    examples = [Example(text, "b", ("b",)) for text in ("x", "y", "z")]
    found = encode(tokenizer, examples, ("First.", "Second."))
    assert [e.prompt for e in found] == [
        render(tokenizer, text, wording) for text, wording in (("x", "First."), ("y", "Second."), ("z", "First."))
    ]
    assert encode(tokenizer, []) == []


def test_words_family_is_short(tokenizer):
    tasks = [words.build_task(combination, 10, 0, "train") for combination in words.split_combinations()[0][::7]]
    lengths = [sum(map(len, example)) for task in tasks for example in encode(tokenizer, task.train)]
    assert sorted(lengths)[int(0.95 * len(lengths))] <= 33  # 32 are read, the last is only predicted
    assert max(lengths) <= 40


def test_template_that_refuses_a_system_turn_gets_none(tokenizer):
    refusing = with_template(tokenizer, REFUSES_SYSTEM)
    assert refusing.decode(render(refusing, LIST)) == f"<user>{LIST}<model>"
    assert render(refusing, LIST, system=None) == render(refusing, LIST)
    with pytest.raises(UserError, match=r"System role not supported.*another system text"):
        render(refusing, LIST, system="Be brief.")


def test_no_chat_template(tokenizer):
    with pytest.raises(UserError, match="no chat template: use an instruct model"):
        render(with_template(tokenizer, None), LIST)
