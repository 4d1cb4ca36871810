import pytest
from chat_templates import REFUSES_SYSTEM, with_template

from t2l_jax.data import words
from t2l_jax.data.prompts import JOINED_HINT, PromptConfig, encode, in_form
from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import end_of_turn, render
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve

LIST = "tiger, apple, hammer, blue, piano"


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(resolve(smollm2))


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


def test_the_modes_of_a_share():
    shares, definition = (0.0, 0.4, 1.0), PromptConfig(instruction="definition")
    assert [PromptConfig().modes(share) for share in shares] == [
        ("instance",),
        ("instance", "instruction"),
        ("instruction",),
    ]
    assert [definition.modes(share) for share in shares] == [("instance",), ("instance", "definition"), ("definition",)]


def test_what_is_asked_and_answered_in_each_form():
    """One right answer or two, in a folder's task and in one whose source writes the prompt."""
    local = Task("local", ("d",), (Example("x", "1", ("1",)), Example("y", "2", ("2", "two"))), (), definition="Count.")
    rendered = tuple(Example(e.input, e.output, e.accepted, prompt=f"Do: Count. Now {e.input}") for e in local.train)
    hub = Task("hub", ("d",), rendered, (), definition="Count.")

    def pairs(task, mode, answers):
        return [(example.input, example.output) for example in in_form(task, task.train, mode, answers)]

    for mode in ("instance", "instruction"):
        assert pairs(hub, mode, "first") == [("x", "1"), ("y", "2")]
        assert pairs(hub, mode, "joined") == [("x", "1"), ("y", "2, two")]
    assert pairs(local, "definition", "first") == [("Count.\n\nx", "1"), ("Count.\n\ny", "2")]
    assert pairs(local, "definition", "joined")[1] == (f"Count.{JOINED_HINT}\n\ny", "2, two")
    assert pairs(hub, "definition", "first") == [("Do: Count. Now x", "1"), ("Do: Count. Now y", "2")]
    assert pairs(hub, "definition", "joined") == [
        ("Do: Count. Now x", "1"),
        (f"Do: Count.{JOINED_HINT} Now y", "2, two"),
    ]
    assert [example.accepted for example in in_form(hub, hub.train, "definition", "joined")] == [("1",), ("2", "two")]


def test_a_task_without_a_definition_is_refused_by_name():
    task = Task("bare", ("d",), (Example("x", "1", ("1",)),), ())
    with pytest.raises(UserError, match="task bare: has no definition, which prompts are to hold"):
        in_form(task, task.train, "definition")


def test_words_family_is_short(tokenizer):
    tasks = [words.build_task(combination, 10, 0, "train") for combination in words.split_combinations()[0][::7]]
    lengths = [sum(map(len, example)) for task in tasks for example in encode(tokenizer, task.train)]
    assert sorted(lengths)[int(0.95 * len(lengths))] <= 33  # 32 are read, the last is only predicted
    assert max(lengths) <= 40


def test_an_answer_ends_as_the_template_ends_a_turn(tokenizer):
    """Gemma's ends turns with a token that is not EOS; a template may end them with no token at all."""
    closing = REFUSES_SYSTEM.replace("message['content']", "message['content'] + '<|im_start|>\\n'")
    (found,) = encode(with_template(tokenizer, closing), [Example(LIST, "x", ("x",))])
    assert found.answer[-1] == tokenizer.convert_tokens_to_ids("<|im_start|>") != tokenizer.eos_token_id
    assert end_of_turn(with_template(tokenizer, REFUSES_SYSTEM)) == tokenizer.eos_token_id
    without = with_template(tokenizer, REFUSES_SYSTEM)
    without.eos_token = None
    with pytest.raises(UserError, match="has no token that ends an answer: it needs an eos_token"):
        end_of_turn(without)
