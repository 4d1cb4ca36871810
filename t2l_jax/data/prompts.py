"""From an example to tokens: the prompt as the base model's own chat template writes it, and the answer.

Two modes. Instance only: the user turn holds the instance and nothing else, so the adapter alone carries the task.
With instruction: the user turn holds the instruction, a blank line and the instance (the mode of the paper).

Many templates add a system turn of their own when they are given none. `system` says what stands there instead; the
default is the empty string, which for SmolLM2 costs 5 tokens where its own system turn costs 21.
"""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from t2l_jax.data.tasks import Example
from t2l_jax.errors import UserError


class Encoded(NamedTuple):
    """One example as tokens. The model reads `prompt + answer` and is trained on `answer`, which ends with EOS."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def render(
    tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None, system: str | None = ""
) -> list[int]:
    """The prompt's tokens, up to where the answer starts.

    `system` is the content of the system turn; None gives no such turn and leaves the choice to the template (for
    templates that refuse one, such as Gemma's). Raises UserError where the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: use an instruct model"
        )
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": input if instruction is None else f"{instruction}\n\n{input}"})
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return _tokens(tokenizer, text)


def encode(
    tokenizer: PreTrainedTokenizerBase, example: Example, instruction: str | None = None, system: str | None = ""
) -> Encoded:
    """The example's prompt (see `render`) and its answer, which ends with the tokenizer's EOS, the end of the turn."""
    prompt = render(tokenizer, example.input, instruction, system)
    return Encoded(tuple(prompt), (*_tokens(tokenizer, example.output), tokenizer.eos_token_id))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written the special tokens
