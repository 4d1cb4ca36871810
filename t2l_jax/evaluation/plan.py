"""What is asked of whom: the methods (columns of the table), and every prompt of an evaluation.

Wordings are texts that were never trained on, where a task has such. A method that reads no wording is asked once.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import tyro

from t2l_jax.data.prompts import PromptMode
from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import render, render_turns
from t2l_jax.errors import UserError
from t2l_jax.evaluation.choices import choices
from t2l_jax.evaluation.engine import Answerer, Question
from t2l_jax.evaluation.metrics import CODE_PASS, NUMERIC_MATCH
from t2l_jax.llm import LLM

EITHER = ""  # the mode of what the base model answers: its prompt does not depend on the mode
SHOTS = 3
LONGEST_FEW_SHOT = 2048  # tokens of a prompt with examples: as many of the SHOTS as fit
RANDOM_CHARACTERS = 60
ROOM_TO_CALCULATE = 64  # new tokens at least where the last number of an answer counts: what leads to it comes before


@dataclass(frozen=True)
class Method:
    """A column. `weights` says which answerer is asked; a hypernetwork's adapter is written from `text`."""

    title: str
    weights: Literal["base", "multitask", "average", "hypernet", "one-hot", "oracle"]
    text: Literal["", "own", "other", "random"] = ""
    described: bool = False  # the wording stands in the prompt, whatever the mode
    shots: bool = False


METHODS: dict[str, Method] = {
    "base": Method("base", "base"),
    "description": Method("base + description", "base", described=True),
    "few-shot": Method(f"base + description + {SHOTS} examples", "base", described=True, shots=True),
    "multitask": Method("multi-task LoRA", "multitask"),
    "average": Method("average LoRA", "average"),
    "random": Method("adapter from a random string", "hypernet", "random"),
    "misaligned": Method("misaligned adapter", "hypernet", "other"),
    "aligned": Method("aligned adapter", "hypernet", "own"),
    "one-hot": Method("one-hot hypernetwork", "one-hot"),
    "oracle": Method("oracle", "oracle"),
}
MethodName = Literal[
    "base", "description", "few-shot", "multitask", "average", "random", "misaligned", "aligned", "one-hot", "oracle"
]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how thoroughly."""

    tasks: str = "words"
    """`words`, `family` or `gym` (built in; gym needs the extra reasoning-gym), a folder of task folders, or
    the original's registry, a folder of NAME/metadata.yaml, whose data sets come from the hub."""
    only: tuple[str, ...] = ()
    """Patterns of task names, such as 'sni_*' 'boolq'. Default: all tasks."""
    splits: tuple[str, ...] = ()
    """Groups of tasks, such as train, 'unseen combinations'. Default: all there are."""
    max_tasks: int = 70
    """Tasks of each split at most, evenly spread."""
    examples: int = 20
    """Test examples of each task at most."""
    wordings: int = 3
    """Descriptions of each task, averaged: ones that were never trained on, where the task has such."""
    prompt: Literal["instance", "instruction", "both"] = "instance"
    """What adapters are tried with: the instance alone, the description before it, or first one then the other."""
    methods: Annotated[tuple[MethodName, ...], tyro.conf.arg(metavar="[METHOD ...]")] = ()
    """Some of base, description, few-shot, multitask, average, random, misaligned, aligned, one-hot, oracle, which are
    the columns of the table. Default: all that there is material for."""
    choose: Literal["likelihood", "text"] = "likelihood"
    """How labels and options are answered: the likeliest one counts (label accuracy), or what the model writes does."""
    run_code: bool = False
    """Run the programs that the model writes for code tasks; left out otherwise. It is no jail:
    evaluation/sandbox.py says what it protects from."""
    max_new_tokens: int = 256
    """Tokens of an answer at most; a task whose right answers are shorter gets as many as the longest needs, but for
    programs. Where right answers are longer the table says so."""
    max_prompt_tokens: int = 8192
    """Tokens of a prompt at most; a longer one is an error, not a wrong score."""
    batch_tokens: int = 4096
    """Prompt tokens computed at a time. More is faster on a GPU and needs more memory; the scores stay the same."""

    def __post_init__(self) -> None:
        for name in ("max_tasks", "examples", "wordings", "max_new_tokens", "max_prompt_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def modes(self) -> tuple[PromptMode, ...]:
        return ("instance", "instruction") if self.prompt == "both" else (self.prompt,)


@dataclass(frozen=True)
class Row:
    """One row of the predictions: its place in the table, the question, and a key that equal questions share."""

    split: str
    task: Task
    method: str
    mode: str
    wording: int
    example: int
    question: Question
    key: str


def misalign(texts: Sequence[str]) -> list[str]:
    """The same texts, each in the place of another: passed on along a circle in random order."""
    order = np.random.default_rng(0).permutation(len(texts))
    moved = dict(zip(order, np.roll(order, 1), strict=True))
    return [texts[moved[place]] for place in range(len(texts))]


def random_text(task: str, wording: int) -> str:
    """A string of letters, digits and blanks that the task's name and the number seed."""
    digest = hashlib.sha256(f"{task}/{wording}".encode()).digest()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789    ")
    drawn = np.random.default_rng(list(digest)).choice(letters, RANDOM_CHARACTERS)
    return "x" + "".join(drawn)


def adapter_text(method: Method, task: Task, other: Task, wording: int) -> str:
    """What the hypernetwork reads for a task's adapter; "" where the method asks none."""
    texts = {"": "", "own": task.held_out_wording(wording), "other": other.held_out_wording(wording)}
    return texts[method.text] if method.text in texts else random_text(task.name, wording)


@dataclass(frozen=True)
class Planner:
    """Makes the rows. `named` are, by source, the tasks that have an adapter of their own there.

    `notes` says, once the rows are made, which right answers are longer than what may be written, and which prompts
    hold fewer examples than they should.
    """

    llm: LLM
    answerers: dict[str, Answerer]
    methods: Sequence[str]
    config: EvaluationConfig
    named: Mapping[str, Collection[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self, splits: dict[str, list[Task]]) -> Iterator[Row]:
        """Every question of an evaluation, task by task. Raises UserError for a prompt that is too long."""
        for split, tasks in splits.items():
            others = misalign([task.name for task in tasks])
            by_name = {task.name: task for task in tasks}
            for task, other in zip(tasks, others, strict=True):
                yield from self._task(split, task, by_name[other])

    def _task(self, split: str, task: Task, other: Task) -> Iterator[Row]:
        config = self.config
        some = task.test[: config.examples]
        options = [choices(task, example) for example in some] if config.choose == "likelihood" else [()]
        chosen = all(options)  # one measure for a task: all its examples have choices, or none is asked to choose
        picks = [tuple(tuple(self._tokens(text)) for text in own) if chosen else () for own in options] * len(some)
        # A right number may stand behind a calculation, a right program repeat its head.
        least = {NUMERIC_MATCH: ROOM_TO_CALCULATE, CODE_PASS: config.max_new_tokens}.get(task.metric, 1)
        needed = [answer_tokens(self.llm, example) for example in some]
        limit = min(config.max_new_tokens, max(least, -(-max(most for _, most in needed) // 8) * 8))
        if cut := 0 if chosen else sum(fewest > limit for fewest, _ in needed):
            self.notes.append(
                f"{task.name}: {cut} of {len(some)} right answers have more than the {limit} tokens that may be "
                "written and cannot be given: raise --max-new-tokens"
            )
        fewer: set[tuple[int, int]] = set()  # prompts with fewer examples than there should be
        prompts: dict[tuple[str, int, int], np.ndarray] = {}  # shared by the methods that ask the same
        wordings = min(config.wordings, len(task.unseen_descriptions or task.descriptions))
        for name in self.methods:
            method = METHODS[name]
            unfit = (method.shots and not task.train) or task.name not in self.named.get(method.weights, [task.name])
            unfit = unfit or (method.text == "other" and other is task)
            for mode in () if unfit else config.modes if method.weights != "base" else (EITHER,):
                described = method.described or mode == "instruction"
                reads = described or method.text in ("own", "other")
                for wording in range(wordings if reads else config.wordings if method.text else 1):
                    text = task.held_out_wording(wording) if described else None
                    adapter = task.name if method.weights in self.named else adapter_text(method, task, other, wording)
                    for number, example in enumerate(some):
                        key = ("shots" if method.shots else "plain", wording if described else -1, number)
                        if key not in prompts:
                            prompts[key], shots = self._prompt(task, example, text, method.shots)
                            prompt = prompts[key]
                            if method.shots and shots < SHOTS:
                                fewer.add((wording, number))
                            if len(prompt) > config.max_prompt_tokens:
                                raise UserError(
                                    f"{task.name}: test example {number + 1} makes a prompt of {len(prompt)} tokens, "
                                    f"more than {config.max_prompt_tokens}: shorten it, leave the task out, or raise "
                                    "--max-prompt-tokens"
                                )
                        question = Question(method.weights, adapter, prompts[key], limit, picks[number])
                        yield self._row(split, task, name, mode, wording, number, question)
        if fewer:
            why = (
                f"more than {LONGEST_FEW_SHOT} tokens" if len(task.train) >= SHOTS else f"only {len(task.train)} there"
            )
            self.notes.append(f"{task.name}: {len(fewer)} prompts hold fewer than {SHOTS} examples ({why})")

    def _row(
        self, split: str, task: Task, method: str, mode: str, wording: int, number: int, question: Question
    ) -> Row:
        example = task.test[number]
        digest = hashlib.sha256(question.prompt.tobytes())
        answerer = self.answerers[question.weights]
        content = [answerer.identity, question.adapter, question.limit, question.choices, task.metric]
        content += [example.accepted, example.test, example.entry_point, task.name, method, mode, wording, number]
        digest.update(json.dumps(content).encode())
        return Row(split, task, method, mode, wording, number, question, digest.hexdigest()[:32])

    def _prompt(self, task: Task, example: Example, text: str | None, shots: bool) -> tuple[np.ndarray, int]:
        """The prompt's tokens, and how many examples it holds."""
        if not shots:
            return np.asarray(render(self.llm.tokenizer, example.input, text), np.int32), 0
        for count in range(min(SHOTS, len(task.train)), -1, -1):
            tokens = few_shot(self.llm, task, example, text or "", count)
            if len(tokens) <= LONGEST_FEW_SHOT:
                break
        return np.asarray(tokens, np.int32), count

    def _tokens(self, text: str) -> list[int]:
        return self.llm.tokenizer(text, add_special_tokens=False)["input_ids"]


def few_shot(llm: LLM, task: Task, example: Example, description: str, count: int) -> list[int]:
    """A conversation: the description before the first question, `count` training examples answered, the question.

    The examples are the same for every question of a task, drawn by its name.
    """
    seed = list(hashlib.sha256(task.name.encode()).digest())
    drawn = np.random.default_rng(seed).permutation(len(task.train))[:count]
    pairs = [(task.train[i].input, task.train[i].output) for i in drawn]
    asked = [question for question, _ in pairs] + [example.input]
    asked[0] = f"{description}\n\n{asked[0]}"
    turns = [{"role": "user", "content": asked[0]}]
    for (_, answer), question in zip(pairs, asked[1:], strict=True):
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    return render_turns(llm.tokenizer, turns)


def answer_tokens(llm: LLM, example: Example) -> tuple[int, int]:
    """New tokens that the shortest and the longest right answer need, each with its end."""
    texts = [example.output, *example.accepted]
    sizes = [len(tokens) + 1 for tokens in llm.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return min(sizes), max(sizes)
