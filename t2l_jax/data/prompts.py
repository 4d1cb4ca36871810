"""From an example to tokens: the prompt as the base model's own chat template writes it, and the answer.

Two modes. Instance only: the user turn holds the instance and nothing else, so the adapter alone carries the task.
With instruction: the user turn holds the instruction, a blank line and the instance (the mode of the paper).

Many templates add a system turn of their own when they are given none. So they are given an empty one, which for
SmolLM2 costs 5 tokens where its own system turn costs 21; Gemma's template refuses it and gets none.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.tasks import Example
from t2l_jax.errors import UserError

PromptMode = Literal["instance", "instruction"]  # what the user turn holds: the instance alone, or the task's text too
Tokens = Sequence[int] | np.ndarray


class Encoded(NamedTuple):
    """One example as tokens. The model reads `prompt + answer` and is trained on `answer`, `end_of_turn` included."""

    prompt: Tokens
    answer: Tokens


def render(tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None) -> list[int]:
    """The tokens of `prompt_text`, up to where the answer starts."""
    return _tokens(tokenizer, [prompt_text(tokenizer, input, instruction)])[0]


def prompt_text(tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None) -> str:
    """The prompt as the chat template writes it, with an empty system turn, or none where the template refuses one.

    Raises UserError for a tokenizer without a chat template, and for a template that refuses the turns.
    """
    user = {"role": "user", "content": input if instruction is None else f"{instruction}\n\n{input}"}
    return _apply_template(tokenizer, [user])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: the first special one that the chat template writes after it, else EOS.

    Gemma's ends with <end_of_turn> where EOS is <eos>. Raises UserError where there is neither.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    after = _apply_template(tokenizer, turns, answered=True).rpartition("answer")[2]
    specials = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    specials.update(tokenizer.all_special_ids)
    special = [token for token in _tokens(tokenizer, [after])[0] if token in specials]
    ends = [*special, tokenizer.eos_token_id]
    if ends[0] is None:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no token that ends an answer: it needs an eos_token")
    return int(ends[0])


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], instructions: Sequence[str] = ()
) -> list[Encoded]:
    """Each example's prompt (see `render`) and its answer, which ends with `end_of_turn`.

    With instructions, that of example i is number i, beginning again after the last.
    """
    wordings = instructions or (None,)
    texts = [prompt_text(tokenizer, e.input, wordings[i % len(wordings)]) for i, e in enumerate(examples)]
    prompts = _tokens(tokenizer, texts)
    answers = _tokens(tokenizer, [example.output for example in examples])
    end = end_of_turn(tokenizer)
    return [Encoded(p, [*answer, end]) for p, answer in zip(prompts, answers, strict=True)]


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], answered: bool = False) -> str:
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no chat template: use an instruct model")
    system = {"role": "system", "content": ""}
    try:
        return str(tokenizer.apply_chat_template([system, *turns], add_generation_prompt=not answered, tokenize=False))
    except TemplateError:
        pass
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=not answered, tokenize=False))
    except TemplateError as error:
        raise UserError(f"the chat template of {_name(tokenizer)} refuses the prompt: {error}") from error


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "this model"


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # the template has written the special tokens
