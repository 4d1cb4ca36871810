"""Prompts as the base model's own chat template writes them, as text and as tokens.

Many templates add a system turn of their own when they are given none. So they are given an empty one, which for
SmolLM2 costs 5 tokens where its own system turn costs 21; Gemma's template refuses it and gets none.
"""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from t2l_jax.decoder.template_process import PROCESS, Reply
from t2l_jax.errors import UserError

Turns = Sequence[Mapping[str, str]]  # of {"role", "content"}
MANY = 256  # conversations rendered at once


def render(tokenizer: PreTrainedTokenizerBase, input: str, instruction: str | None = None) -> list[int]:
    """The tokens of a prompt of `prompt_texts`, up to where the answer starts."""
    return tokenize(tokenizer, prompt_texts(tokenizer, [input], [instruction]))[0]


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase, inputs: Sequence[str], instructions: Sequence[str | None]
) -> list[str]:
    """Prompts of one user turn each: the input, after its instruction, if any, and a blank line.

    Raises UserError as `conversation_texts` does.
    """
    contents = [
        input if instruction is None else f"{instruction}\n\n{input}"
        for input, instruction in zip(inputs, instructions, strict=True)
    ]
    return conversation_texts(tokenizer, [[{"role": "user", "content": content}] for content in contents])


def render_turns(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> list[int]:
    """The tokens of `conversation_texts`, up to where the answer starts."""
    return tokenize(tokenizer, conversation_texts(tokenizer, [turns]))[0]


def conversation_texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Turns], *, answered: bool = False
) -> list[str]:
    """User and assistant turns after an empty system turn, or after none if the template refuses it.

    A text ends where the next answer starts, or with the last turn if that is `answered`. Raises UserError for a
    tokenizer without a chat template, and for a template that fails or refuses the turns.
    """
    texts: list[str] = []
    system = {"role": "system", "content": ""}
    for start in range(0, len(conversations), MANY):
        some = [list(turns) for turns in conversations[start : start + MANY]]
        replies = _replies(tokenizer, [[system, *turns] for turns in some], answered)
        refused = [place for place, reply in enumerate(replies) if "error" in reply]
        others = _replies(tokenizer, [some[place] for place in refused], answered) if refused else []
        for place, reply in zip(refused, others, strict=True):
            replies[place] = reply
        texts += [_text(tokenizer, reply) for reply in replies]
    return texts


def as_they_are(tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    """A conversation without further turns, up to where the answer starts. Raises UserError as the others do."""
    return _text(tokenizer, _replies(tokenizer, [turns], answered=False)[0])


def _replies(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Turns], answered: bool) -> list[Reply]:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(sorted(template))
            raise UserError(f"{_name(tokenizer)} has the chat templates {names}, and none named default: choose one")
        template = template["default"]
    if not template:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no chat template: use an instruct model")
    if not isinstance(template, str):
        raise UserError(f"the chat template of {_name(tokenizer)} must be a text, got {template!r:.40}")
    try:
        return PROCESS.render(template, tokenizer.special_tokens_map, conversations, answered=answered)
    except UserError as error:
        raise UserError(f"the chat template of {_name(tokenizer)} {error}") from error


def _text(tokenizer: PreTrainedTokenizerBase, reply: Reply) -> str:
    if "error" in reply:
        reason = " ".join(reply["error"].split())
        raise UserError(f"the chat template of {_name(tokenizer)} refuses the prompt: {reason}")
    try:
        reply["text"].encode()
    except UnicodeEncodeError as error:
        raise UserError("the prompt holds half of a UTF-16 surrogate pair, or bytes that are not UTF-8") from error
    return reply["text"]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer: the first special one that the chat template writes after it, else EOS.

    Gemma's ends with <end_of_turn> where EOS is <eos>. Raises UserError if there is neither.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    after = conversation_texts(tokenizer, [turns], answered=True)[0].rpartition("answer")[2]
    specials = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    specials.update(tokenizer.all_special_ids)
    special = [token for token in tokenize(tokenizer, [after])[0] if token in specials]
    ends = [*special, tokenizer.eos_token_id]
    if ends[0] is None:
        raise UserError(f"the tokenizer of {_name(tokenizer)} has no token that ends an answer: it needs an eos_token")
    return int(ends[0])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, and no others: the chat template has written the special ones.

    Raises UserError if the tokenizer fails, which damage to its files may show only now.
    """
    if not texts:
        return []
    try:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    except Exception as error:  # what a damaged tokenizer raises has no limits
        reason = " ".join(str(error).split())
        raise UserError(
            f"the tokenizer of {_name(tokenizer)} fails ({reason:.200}); download the model again"
        ) from error


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "this model"
