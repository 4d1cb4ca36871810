"""Tokenises examples: the prompt in the base model's chat template, and the answer.

Two prompt modes. Instance only: the user turn holds just the instance, so that only the adapter carries the task.
With instruction: the user turn holds the instruction, a blank line and the instance (the mode of the paper).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.tasks import Example
from t2l_jax.decoder.chat_template import end_of_turn, prompt_texts, tokenize

PromptMode = Literal["instance", "instruction"]  # what the user turn holds: the instance alone, or the task's text too
Tokens = Sequence[int] | np.ndarray


class Encoded(NamedTuple):
    """One example as tokens. The model reads `prompt + answer` and is trained on `answer`, `end_of_turn` included."""

    prompt: Tokens
    answer: Tokens


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], instructions: Sequence[str] = ()
) -> list[Encoded]:
    """Tokenise each example's prompt (see `chat_template.prompt_texts`) and its answer with `end_of_turn`.

    Example i gets instruction i modulo their number; without instructions the prompt is the instance alone.
    """
    wordings = instructions or (None,)
    texts = prompt_texts(
        tokenizer,
        [example.input for example in examples],
        [wordings[i % len(wordings)] for i in range(len(examples))],
    )
    prompts = tokenize(tokenizer, texts)
    answers = tokenize(tokenizer, [example.output for example in examples])
    end = end_of_turn(tokenizer)
    return [Encoded(p, [*answer, end]) for p, answer in zip(prompts, answers, strict=True)]
