"""The plan of an evaluation: its methods (the columns of the table) and every question put to them.

Wordings are held-out descriptions if the task has any. A method that reads no description is run once per example.

A hypernetwork that reads instances writes an adapter for each question, from the question's own input. Its misaligned
and random columns replace the description or, if it reads the instance alone, the instance.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from t2l_jax.data.prompts import PromptMode, defined
from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import render, render_turns
from t2l_jax.decoder.generation import NewTokens
from t2l_jax.errors import UserError
from t2l_jax.evaluation import sandbox
from t2l_jax.evaluation.choices import choices
from t2l_jax.evaluation.engine import AdapterKey, Answerer, Question
from t2l_jax.evaluation.metrics import CODE_PASS, NUMERIC_MATCH
from t2l_jax.io.published import Reads
from t2l_jax.llm import LLM
from t2l_jax.schema import Count, check_fields
from t2l_jax.sharding import MeshConfig

EITHER = ""  # mode of the base model's rows: their prompts do not depend on the mode
SHOTS = 3
LONGEST_FEW_SHOT = 2048  # maximum tokens of a few-shot prompt; it holds up to SHOTS examples that fit
RANDOM_CHARACTERS = 60
ROOM_TO_CALCULATE = 64  # minimum new tokens if the answer's last number is scored: leaves room for working


@dataclass(frozen=True)
class Method:
    """A column of the table. `weights` names the answerer; a hypernetwork generates its adapter from `text`."""

    title: str
    weights: Literal["base", "multitask", "average", "hypernet", "instance", "one-hot", "oracle"]
    text: Literal["", "own", "other", "random"] = ""
    described: bool = False  # the prompt holds the description in every mode
    defined: bool = False  # the prompt holds the definition in every mode
    shots: bool = False


METHODS: dict[str, Method] = {
    "base": Method("base", "base"),
    "description": Method("base + description", "base", described=True),
    "definition": Method("base + definition", "base", defined=True),
    "few-shot": Method(f"base + description + {SHOTS} examples", "base", described=True, shots=True),
    "multitask": Method("multi-task LoRA", "multitask"),
    "average": Method("average LoRA", "average"),
    "random": Method("adapter from a random string", "hypernet", "random"),
    "misaligned": Method("misaligned adapter", "hypernet", "other"),
    "aligned": Method("aligned adapter", "hypernet", "own"),
    "instance": Method("input-conditioned adapter", "instance", "own"),
    "one-hot": Method("one-hot hypernetwork", "one-hot"),
    "oracle": Method("oracle", "oracle"),
}
MethodName = Literal[
    "base",
    "description",
    "definition",
    "few-shot",
    "multitask",
    "average",
    "random",
    "misaligned",
    "aligned",
    "instance",
    "one-hot",
    "oracle",
]


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate, and how thoroughly."""

    tasks: str = "words"
    """Task source: `words`, `family` or `gym` (built in; gym needs the extra reasoning-gym), a folder of task folders,
    or a folder of NAME/metadata.yaml (the registry of the original), whose data sets come from the hub."""
    only: tuple[str, ...] = ()
    """Evaluate only tasks whose names match these patterns, such as 'sni_*' 'boolq'. Default: all tasks."""
    splits: tuple[str, ...] = ()
    """Splits to evaluate, such as train, 'unseen combinations'. Default: all splits."""
    max_tasks: Count = 70
    """Maximum number of tasks per split, evenly spaced."""
    examples: Count = 20
    """Maximum number of test examples per task."""
    wordings: Count = 3
    """Number of descriptions per task to average over: held-out ones if the task has any."""
    prompt: Literal["instance", "instruction", "definition", "both"] = "instance"
    """Prompt for adapted models: the instance alone; the description and the instance; the task's definition and the
    instance (the paper's; a task without one is refused); or the first two in turn (both)."""
    methods: Annotated[tuple[MethodName, ...], tyro.conf.arg(metavar="[METHOD ...]")] = ()
    """Columns of the table, from base, description, definition, few-shot, multitask, average, random, misaligned,
    aligned, instance, one-hot, oracle. Default: every method whose inputs are given (definition: if --prompt is)."""
    choose: Literal["likelihood", "text"] = "likelihood"
    """How to answer with labels or options: pick the likeliest (label accuracy), or score the generated text."""
    run_code: bool = False
    """Include code tasks and run the programs that the model writes for them, confined as well as this system can: see
    docs/safety.md."""
    max_new_tokens: NewTokens = 256
    """Maximum number of tokens per answer. Except for programs, tasks with shorter reference answers are limited to
    the longest of them. The table notes reference answers that exceed the limit."""
    max_prompt_tokens: Count = 8192
    """Maximum number of tokens per prompt. A longer prompt is an error; it is never truncated."""
    batch_tokens: Count = 4096
    """Prompt tokens per batch, padding included. Affects speed and memory only, not the scores."""

    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check_fields(self, "evaluation")

    @property
    def modes(self) -> tuple[PromptMode, ...]:
        return ("instance", "instruction") if self.prompt == "both" else (self.prompt,)


@dataclass(frozen=True)
class Row:
    """One row of the predictions: its place in the table, the question, and a hash of what determines its score."""

    split: str
    task: Task
    method: str
    mode: str
    wording: int
    example: int
    question: Question
    key: str


def misalign(texts: Sequence[str]) -> list[str]:
    """The same texts, permuted along one random cycle: with two or more texts, none keeps its place."""
    order = np.random.default_rng(0).permutation(len(texts))
    moved = dict(zip(order, np.roll(order, 1), strict=True))
    return [texts[moved[place]] for place in range(len(texts))]


def random_text(task: str, wording: int) -> str:
    """A random string of letters, digits and spaces, seeded by the task's name and the wording's number."""
    digest = hashlib.sha256(f"{task}/{wording}".encode()).digest()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789    ")
    drawn = np.random.default_rng(list(digest)).choice(letters, RANDOM_CHARACTERS)
    return "x" + "".join(drawn)


def adapter_text(method: Method, task: Task, other: Task, wording: int) -> str:
    """The text from which the hypernetwork generates a task's adapter; "" if the method uses none."""
    texts = {"": "", "own": task.held_out_wording(wording), "other": other.held_out_wording(wording)}
    return texts[method.text] if method.text in texts else random_text(task.name, wording)


def adapter_key(reads: Reads, text: str, method: Method, task: Task, other: Task, example: int) -> AdapterKey:
    """What a hypernetwork generates the adapter of a test example from, given `adapter_text`."""
    if reads == "both":
        return text, task.test[example].input
    if reads == "instance":
        source = other if method.text == "other" else task
        return "", text if method.text == "random" else source.test[example % len(source.test)].input
    return text


def all_keys(reads: Reads, method: Method, task: Task, other: Task, config: "EvaluationConfig") -> Iterator[AdapterKey]:
    """Everything that a hypernetwork may generate adapters from for a method's questions about a task."""
    for wording in range(config.wordings):
        text = adapter_text(method, task, other, wording)
        for example in range(len(task.test[: config.examples])):
            yield adapter_key(reads, text, method, task, other, example)


@dataclass(frozen=True)
class Planner:
    """Makes the rows. `named` maps answerers whose adapters belong to tasks to the names of those tasks.

    `reads` says of each hypernetwork among the answerers what it reads.

    Once the rows are made, `notes` lists tasks whose reference answers exceed the token limit, and few-shot prompts
    with fewer than SHOTS examples.
    """

    llm: LLM
    answerers: dict[str, Answerer]
    methods: Sequence[str]
    config: EvaluationConfig
    named: Mapping[str, Collection[str]] = field(default_factory=dict)
    reads: Mapping[str, Reads] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self, splits: dict[str, list[Task]]) -> Iterator[Row]:
        """Every question of an evaluation, task by task. Raises UserError if a prompt is too long."""
        for split, tasks in splits.items():
            others = misalign([task.name for task in tasks])
            by_name = {task.name: task for task in tasks}
            for task, other in zip(tasks, others, strict=True):
                yield from self._task(split, task, by_name[other])

    def _task(self, split: str, task: Task, other: Task) -> Iterator[Row]:
        config = self.config
        some = task.test[: config.examples]
        options = [choices(task, example) for example in some] if config.choose == "likelihood" else [()]
        chosen = all(options)  # one metric per task: choose only if all its examples have choices
        picks = [tuple(tuple(self._tokens(text)) for text in own) if chosen else () for own in options] * len(some)
        # A correct number may follow its working; a correct program may repeat the function's header.
        least = {NUMERIC_MATCH: ROOM_TO_CALCULATE, CODE_PASS: config.max_new_tokens}.get(task.metric, 1)
        needed = [answer_tokens(self.llm, example) for example in some]
        limit = min(config.max_new_tokens, max(least, -(-max(most for _, most in needed) // 8) * 8))
        if cut := 0 if chosen else sum(fewest > limit for fewest, _ in needed):
            self.notes.append(
                f"{task.name}: {cut} of {len(some)} right answers have more than the {limit} tokens that may be "
                "written and cannot be given: raise --max-new-tokens"
            )
        fewer: set[tuple[int, int]] = set()  # prompts with fewer than SHOTS examples
        prompts: dict[tuple[str, int, int], np.ndarray] = {}  # shared by methods with the same prompt
        for name in self.methods:
            method = METHODS[name]
            unfit = (method.shots and not task.train) or task.name not in self.named.get(method.weights, [task.name])
            unfit = unfit or (method.text == "other" and other is task)
            for mode in () if unfit else config.modes if method.weights != "base" else (EITHER,):
                described = method.described or mode == "instruction"
                with_definition = method.defined or mode == "definition"
                for wording in range(self._wordings(method, task, described)):
                    text = task.held_out_wording(wording) if described else None
                    for number, example in enumerate(some):
                        kind = "shots" if method.shots else "defined" if with_definition else "plain"
                        key = (kind, wording if described else -1, number)
                        if key not in prompts:
                            asked = replace(example, input=defined(task, example)) if with_definition else example
                            prompts[key], shots = self._prompt(task, asked, text, method.shots)
                            prompt = prompts[key]
                            if method.shots and shots < SHOTS:
                                fewer.add((wording, number))
                            if len(prompt) > config.max_prompt_tokens:
                                raise UserError(
                                    f"{task.name}: test example {number + 1} makes a prompt of {len(prompt)} tokens, "
                                    f"more than {config.max_prompt_tokens}: shorten it, leave the task out, or raise "
                                    "--max-prompt-tokens"
                                )
                        adapter = self._adapter(method, task, other, wording, number)
                        question = Question(method.weights, adapter, prompts[key], limit, picks[number])
                        yield self._row(split, task, name, mode, wording, number, question)
        if fewer:
            why = (
                f"more than {LONGEST_FEW_SHOT} tokens" if len(task.train) >= SHOTS else f"only {len(task.train)} there"
            )
            self.notes.append(f"{task.name}: {len(fewer)} prompts hold fewer than {SHOTS} examples ({why})")

    def _wordings(self, method: Method, task: Task, described: bool) -> int:
        """How many times a method is run per example."""
        own = method.text in ("own", "other") and self.reads.get(method.weights) != "instance"
        if described or own:
            return min(self.config.wordings, len(task.unseen_descriptions or task.descriptions))
        return self.config.wordings if method.text == "random" else 1

    def _adapter(self, method: Method, task: Task, other: Task, wording: int, example: int) -> AdapterKey:
        if method.weights in self.named:
            return task.name
        text = adapter_text(method, task, other, wording)
        return adapter_key(self.reads.get(method.weights, "description"), text, method, task, other, example)

    def _row(
        self, split: str, task: Task, method: str, mode: str, wording: int, number: int, question: Question
    ) -> Row:
        example = task.test[number]
        digest = hashlib.sha256(question.prompt.tobytes())
        answerer = self.answerers[question.weights]
        content: list[Any] = [answerer.identity, question.adapter, question.limit, question.choices, task.metric]
        content += [example.accepted, example.test, example.entry_point, task.name, method, mode, wording, number]
        if task.metric == CODE_PASS:
            content += [sandbox.SCORING, sandbox.level()]
        digest.update(json.dumps(content).encode())
        return Row(split, task, method, mode, wording, number, question, digest.hexdigest()[:32])

    def _prompt(self, task: Task, example: Example, text: str | None, shots: bool) -> tuple[np.ndarray, int]:
        """The prompt's tokens, and the number of its examples."""
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
    """Tokens of a chat: the description and `count` answered training examples, then the question.

    The examples are the same for every question of a task: the task's name seeds their choice.
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
    """Tokens of the shortest and of the longest accepted answer, each with its end-of-turn token."""
    texts = [example.output, *example.accepted]
    sizes = [len(tokens) + 1 for tokens in llm.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return min(sizes), max(sizes)
