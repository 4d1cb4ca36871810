"""Tokenises examples: the prompt in the base model's chat template, and the answer.

What the user turn holds is the prompt mode:

    instance       the instance alone, so that only the adapter carries the task
    instruction    a description, a blank line and the instance
    definition     what the paper's prompts hold: the task's definition and the instance, as the registry's own template
                   puts them; for a task of a local folder the definition, a blank line and the instance

Of several right answers the first is trained on, or all of them, joined by commas as in the original. Its prompts then
say so: that is JOINED_HINT. Evaluations accept any one of them, however the model was trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import end_of_turn, prompt_texts, tokenize
from t2l_jax.errors import UserError
from t2l_jax.schema import check_fields

PromptMode = Literal["instance", "instruction", "definition"]
AnswerForm = Literal["first", "joined"]
JOINED_HINT = "\nThe answer should be a comma-separated list of possible completions."  # as the original puts it
Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class PromptConfig:
    """How prompts and answers are put. The original: definition, joined, original."""

    instruction: Literal["description", "definition"] = "description"
    """The instruction in a prompt: one of the task's training descriptions; or its definition, as its source puts it (a
    task without one is refused)."""
    answers: AnswerForm = "first"
    """What to train on where several answers are right: the first, or all of them, joined by commas."""
    template: Literal["base", "original"] = "base"
    """Chat template: the base LLM's own, or the one that the original trains with (known for the paper's base LLMs, by
    --base-name), which is published with the model."""

    def __post_init__(self) -> None:
        check_fields(self, "prompts")

    def modes(self, instruction_share: float) -> tuple[PromptMode, ...]:
        """The prompt modes that occur for this share of prompts with an instruction."""
        instance: tuple[PromptMode, ...] = ("instance",) if instruction_share < 1 else ()
        instructed: PromptMode = "definition" if self.instruction == "definition" else "instruction"
        return (*instance, instructed) if instruction_share > 0 else instance


class Encoded(NamedTuple):
    """One example as tokens. The model reads `prompt + answer` and is trained on `answer`, `end_of_turn` included."""

    prompt: Tokens
    answer: Tokens


def in_form(task: Task, examples: Sequence[Example], mode: PromptMode, answers: AnswerForm = "first") -> list[Example]:
    """The examples with the input that a mode asks (without its instruction) and the answer to train on.

    Raises UserError if the mode wants a definition and the task has none.
    """
    formed = []
    for example in examples:
        joined = answers == "joined" and len(example.accepted) > 1
        text = defined(task, example, JOINED_HINT * joined) if mode == "definition" else example.input
        formed.append(replace(example, input=text, output=", ".join(example.accepted) if joined else example.output))
    return formed


def defined(task: Task, example: Example, hint: str = "") -> str:
    """The input with the task's definition, and a sentence after that. Raises UserError if the task has none."""
    if not (example.prompt or task.definition):
        raise UserError(
            f"task {task.name}: has no definition, which prompts are to hold: add the field definition to its "
            "task.yaml, or leave the task out"
        )
    text = example.prompt or f"{task.definition}\n\n{example.input}"
    return text.replace(task.definition, task.definition + hint, 1) if hint and task.definition else text


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], instructions: Sequence[str] = ()
) -> list[Encoded]:
    """Tokenise each example's prompt (see `chat_template.prompt_texts`) and its answer with `end_of_turn`.

    Example i gets instruction i modulo their number; without instructions the prompt is the input alone.
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
