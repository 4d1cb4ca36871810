"""From an example to tokens: the prompt as the base model's own chat template writes it, and the answer.

Two modes. Instance only: the user turn holds the instance and nothing else, so the adapter alone carries the task.
With instruction: the user turn holds the instruction, a blank line and the instance (the mode of the paper).

Many templates add a system turn of their own when they are given none. `system` says what stands there instead; the
default is the empty string, which for SmolLM2 costs 5 tokens where its own system turn costs 21.
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
    """One example as tokens. The model reads `prompt + answer` and is trained on `answer`, which ends with EOS."""

    prompt: Tokens
    answer: Tokens


def render(
    tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None, system: str | None = ""
) -> list[int]:
    """The tokens of `prompt_text`, up to where the answer starts."""
    return _tokens(tokenizer, [prompt_text(tokenizer, input, instruction, system)])[0]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None, system: str | None = ""
) -> str:
    """The prompt as the chat template writes it.

    `system` is the content of the system turn: None for what the template writes by itself, "" for an empty turn, or
    for none where the template refuses one (Gemma's does). Raises UserError for a tokenizer without a chat template,
    and for a template that refuses the turns.
    """
    if not tokenizer.chat_template:
        name = tokenizer.name_or_path or "this model"
        raise UserError(f"the tokenizer of {name} has no chat template: use an instruct model")
    user = {"role": "user", "content": input if instruction is None else f"{instruction}\n\n{input}"}
    try:
        return _apply_template(tokenizer, [user] if system is None else [{"role": "system", "content": system}, user])
    except TemplateError as error:
        if system != "":
            raise UserError(
                f"the chat template refuses the prompt: {error}: use another system text, or none"
            ) from error
        return _apply_template(tokenizer, [user])


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], instructions: Sequence[str] = ()
) -> list[Encoded]:
    """Each example's prompt (see `render`) and its answer, which ends with the tokenizer's EOS, the end of the turn.

    With instructions, that of example i is number i, beginning again after the last.
    """
    wordings = instructions or (None,)
    texts = [prompt_text(tokenizer, e.input, wordings[i % len(wordings)]) for i, e in enumerate(examples)]
    prompts = _tokens(tokenizer, texts)
    answers = _tokens(tokenizer, [example.output for example in examples])
    return [Encoded(p, [*answer, tokenizer.eos_token_id]) for p, answer in zip(prompts, answers, strict=True)]


def _apply_template(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # the template has written the special tokens
