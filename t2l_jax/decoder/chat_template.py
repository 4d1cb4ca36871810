"""Prompts as the base model's own chat template writes them, as text and as tokens.

Many templates add a system turn of their own when they are given none. So they are given an empty one, which for
SmolLM2 costs 5 tokens where its own system turn costs 21; Gemma's template refuses it and gets none.
"""

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from t2l_jax.errors import UserError

Turns = Sequence[Mapping[str, str]]  # of {"role", "content"}


def render(tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None) -> list[int]:
    """The tokens of `prompt_text`, up to where the answer starts."""
    return tokenize(tokenizer, [prompt_text(tokenizer, input, instruction)])[0]


def prompt_text(tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None) -> str:
    """The prompt of one user turn: the input, after the instruction, if any, and a blank line.

    Raises UserError as `conversation_text` does.
    """
    content = input if instruction is None else f"{instruction}\n\n{input}"
    return conversation_text(tokenizer, [{"role": "user", "content": content}])


def render_turns(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> list[int]:
    """The tokens of `conversation_text`, up to where the answer starts."""
    return tokenize(tokenizer, [conversation_text(tokenizer, turns)])[0]


def conversation_text(tokenizer: PreTrainedTokenizerBase, turns: Turns, *, answered: bool = False) -> str:
    """User and assistant turns after an empty system turn, or after none if the template refuses it.

    The text ends where the next answer starts, or with the last turn if that is `answered`. Raises UserError for a
    tokenizer without a chat template, and for a template that refuses the turns.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no chat template: use an instruct model")
    messages = [dict(turn) for turn in turns]
    system = {"role": "system", "content": ""}
    try:
        return str(
            tokenizer.apply_chat_template([system, *messages], add_generation_prompt=not answered, tokenize=False)
        )
    except TemplateError:
        pass
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False))
    except TemplateError as error:
        raise UserError(f"the chat template of {_name(tokenizer)} refuses the prompt: {error}") from error


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: the first special one that the chat template writes after it, else EOS.

    Gemma's ends with <end_of_turn> where EOS is <eos>. Raises UserError if there is neither.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    after = conversation_text(tokenizer, turns, answered=True).rpartition("answer")[2]
    specials = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    specials.update(tokenizer.all_special_ids)
    special = [token for token in tokenize(tokenizer, [after])[0] if token in specials]
    ends = [*special, tokenizer.eos_token_id]
    if ends[0] is None:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no token that ends an answer: it needs an eos_token")
    return int(ends[0])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, and no others: the chat template has written the special ones."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "this model"
