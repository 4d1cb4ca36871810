"""A whole evaluation: tasks and a hypernetwork in, a folder with predictions and tables out."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax

from t2l_jax.data.prompts import PromptMode
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.data.tasks import Task, named_like, refuse_unmatched, spread
from t2l_jax.decoder.chat_template import end_of_turn
from t2l_jax.distributed import agree, from_main, in_main, is_main, several, share, side_by_side, together
from t2l_jax.errors import UserError
from t2l_jax.evaluation import report, sandbox, store, weights
from t2l_jax.evaluation.choices import choices
from t2l_jax.evaluation.engine import Answer, Answerer, answer_all
from t2l_jax.evaluation.metrics import CODE_PASS, find_metric
from t2l_jax.evaluation.plan import EITHER, METHODS, EvaluationConfig, Planner, Row, all_keys, misalign
from t2l_jax.evaluation.weights import Baselines
from t2l_jax.io.files import locked
from t2l_jax.io.peft import digest
from t2l_jax.io.session import code, session
from t2l_jax.llm import LLM
from t2l_jax.model import Model
from t2l_jax.progress import progress_bar

SETTINGS_WITHOUT_EFFECT = ("batch_tokens", "max_prompt_tokens", "mesh")


def evaluate(model: Model, config: EvaluationConfig, folder: Path, given: Baselines = Baselines()) -> str:  # noqa: B008
    """Generate and score all answers, write the tables, and return the summary in markdown.

    The folder gets `settings.json`, `environment.json`, `predictions.jsonl`, and `table.md`, `.csv`, `.json` and
    `.png`. An interrupted evaluation resumes. Raises UserError if tasks, methods or the folder are unsuitable. Several
    processes, which all call this with the same arguments, divide the tasks; only the main one uses the folder.
    """
    with together():
        every = read_tasks(config.tasks)
        splits, notes = select(config, every)
        if any(task.metric == CODE_PASS for tasks in splits.values() for task in tasks):
            notes.append(sandbox.LEVELS[sandbox.level()])
        training = {task.name for task in every.get(TRAIN, [])}
        own = {name: path for name, path in given.oracles.items() if name in training}  # the average uses no others
        methods, more = _methods(config, given, own)
        notes += more + _partial_notes(methods, splits, given) + _mode_notes(model, config, methods)
        settings = _settings(model, config, splits, methods, given)
        if is_main():
            store.check(folder, settings)
    if several():
        agree({**code(), **settings})
    with jax.default_matmul_precision("highest"):  # `engine.TIE` assumes the rounding of float32
        with together():
            llm = model.load_base(mesh=config.mesh.of_weights())
            answerers = _answerers(model, llm, splits, methods, config, given, own)
            reads = {name: source.config.reads for name, source in _hypernetworks(model, given).items()}
            planner = Planner(llm, answerers, methods, config, given.named, reads)
            rows = list(planner.rows(splits))
            notes += planner.notes
            if not rows:
                raise UserError(f"{config.tasks}: there is nothing to ask: {'; '.join(notes)}")
        agree({"questions": hashlib.sha256("".join(row.key for row in rows).encode()).hexdigest()})
        with in_main(partial(locked, folder)):  # only now: an evaluation that is refused leaves nothing behind
            with together():
                if is_main():
                    store.claim(folder, settings)
            scores = answer_rows(llm, answerers, rows, folder, config.batch_tokens)
            lines = report.entries(*_collect(rows, scores, config.modes))
            with together():
                if is_main():
                    report.write(folder, lines, notes, settings)
    return report.markdown(lines, notes, single=False)


def select(config: EvaluationConfig, every: dict[str, list[Task]]) -> tuple[dict[str, list[Task]], list[str]]:
    """The tasks to evaluate by split, and notes on what is left out.

    Raises UserError if a split or a metric is unknown, a pattern matches no task, or no task is left.
    """
    for name in config.splits:
        if name not in every:
            raise UserError(f"{config.tasks}: has no split {name!r}: choose among {', '.join(every)}")
    wanted = {name: tasks for name, tasks in every.items() if not config.splits or name in config.splits}
    refuse_unmatched(config.only, [task for tasks in wanted.values() for task in tasks], f"{config.tasks}: only")
    chosen: dict[str, list[Task]] = {}
    notes: list[str] = []
    for name, tasks in wanted.items():
        fit = named_like(tasks, config.only)
        if not config.run_code:
            code = [task.name for task in fit if task.metric == CODE_PASS]
            fit = [task for task in fit if task.metric != CODE_PASS]
            notes += [f"{name}: {', '.join(code)} left out: --run-code runs programs that the model writes"] * bool(
                code
            )
        for task in fit:
            if task.metric != CODE_PASS:
                try:
                    find_metric(task.metric)
                except UserError as error:
                    raise UserError(f"{task.name}: {error}") from error
            elif not all(example.test and example.entry_point for example in task.test):
                raise UserError(
                    f"{task.name}: the metric {CODE_PASS} needs `test` and `entry_point` in every line of test.jsonl"
                )
        if bare := sum(not task.test for task in fit):
            notes.append(f"{name}: {bare} of {len(fit)} tasks have no test examples and are left out")
        some = spread(fit, config.max_tasks)
        if some:
            chosen[name] = some
    if not chosen:
        raise UserError(f"{config.tasks}: there is nothing to evaluate: {'; '.join(notes or ['there are no tasks'])}")
    return chosen, notes


def _methods(config: EvaluationConfig, given: Baselines, own: dict[str, Path]) -> tuple[tuple[str, ...], list[str]]:
    """The columns, in the order of METHODS, and notes on those whose inputs are not given.

    Raises UserError if such a column was requested by name.
    """
    lacking = {}
    if given.multitask is None:
        lacking["multitask"] = "--multitask FOLDER gives the shared LoRA"
    if not given.oracles:
        lacking["oracle"] = "--oracles FOLDER gives each task's own LoRA"
    if given.one_hot is None:
        lacking["one-hot"] = "--one-hot RUN gives a hypernetwork of task identities"
    if given.instance is None:
        lacking["instance"] = "--instance MODEL gives a hypernetwork that reads instances"
    if not own:
        lacking["average"] = "--oracles FOLDER gives the LoRAs of training tasks, which are averaged"
    for name in config.methods:
        if name in lacking:
            raise UserError(f"the method {name} has no material: {lacking[name]}")
    usual = [name for name, method in METHODS.items() if not method.defined or config.prompt == "definition"]
    wanted: Sequence[str] = config.methods or usual
    notes = [f"{METHODS[name].title}: left out, {how}" for name, how in lacking.items() if name in wanted]
    return tuple(name for name in METHODS if name in wanted and name not in lacking), notes


def _partial_notes(methods: Sequence[str], splits: dict[str, list[Task]], given: Baselines) -> list[str]:
    """Notes on columns that cover only some of the tasks."""
    notes = []
    for split, tasks in splits.items():
        known = sum(not task.unseen_descriptions for task in tasks)
        if split == TRAIN and known:
            notes.append(f"{split}: {known} of {len(tasks)} tasks have no wording that was not trained on")
        if "misaligned" in methods and len(tasks) == 1:
            notes.append(f"{split}: {tasks[0].name} is the one task, so no other one's adapter is tried")
        bare = [task.name for task in tasks if not task.train]
        if "few-shot" in methods and bare:
            notes.append(f"{split}: {', '.join(bare)} without training examples, hence without few-shot")
        for name, named in given.named.items():
            missing = sum(task.name not in named for task in tasks)
            if name in methods and missing:
                notes.append(f"{split}: {missing} of {len(tasks)} tasks have no {METHODS[name].title}")
    return notes


def _mode_notes(model: Model, config: EvaluationConfig, methods: Sequence[str]) -> list[str]:
    """Notes on prompt modes that the hypernetwork was not trained for."""
    if not any(METHODS[name].weights == "hypernet" for name in methods):
        return []
    new = [mode for mode in config.modes if model.config.prompt not in (mode, "both")]
    return [f"the hypernetwork was trained for prompts of mode {model.config.prompt}, not of {mode}" for mode in new]


def _settings(
    model: Model, config: EvaluationConfig, splits: dict[str, list[Task]], methods: Sequence[str], given: Baselines
) -> dict[str, Any]:
    """Everything that the answers depend on; a folder holds the answers for one value of it."""
    reads = any(METHODS[name].weights == "hypernet" for name in methods)
    shown = {name: value for name, value in asdict(config).items() if name not in SETTINGS_WITHOUT_EFFECT}
    return {
        **shown,
        "methods": methods,
        "model": model.fingerprint,
        "base": model.config.base,
        "base_files": model.base.identity,
        "encoder": model.encoder.fingerprint if reads else None,
        "multitask": None if given.multitask is None else digest(given.multitask),
        "oracles": {name: digest(path) for name, path in given.oracles.items()},
        "instance": None
        if given.instance is None
        else (given.instance.fingerprint, given.instance.encoder.fingerprint),
        "one_hot": None if given.one_hot is None else given.one_hot.model.fingerprint,
        "task_names": {split: [task.name for task in tasks] for split, tasks in splits.items()},
    }


def _answerers(
    model: Model,
    llm: LLM,
    splits: dict[str, list[Task]],
    methods: Sequence[str],
    config: EvaluationConfig,
    given: Baselines,
    own: dict[str, Path],
) -> dict[str, Answerer]:
    """The answerers that the methods need."""
    answerers = {"base": Answerer(f"base {llm.location}", llm.params)}
    pairs = [pair for tasks in splits.values() for pair in zip(tasks, _others(tasks), strict=True)]
    for weight, source in _hypernetworks(model, given).items():
        used = [METHODS[name] for name in methods if METHODS[name].weights == weight]
        if used:
            keys = (all_keys(source.config.reads, method, *pair, config) for pair in pairs for method in used)
            answerers[weight] = weights.hypernet_answerer(source, llm, chain.from_iterable(keys))
    if "multitask" in methods and given.multitask is not None:
        answerers["multitask"] = weights.multitask_answerer(llm, given.multitask)
    if "average" in methods:
        answerers["average"] = weights.average_answerer(llm, own)
    if "one-hot" in methods and given.one_hot is not None:
        answerers["one-hot"] = weights.one_hot_answerer(llm, given.one_hot)
    if "oracle" in methods:
        answerers["oracle"] = weights.oracle_answerer(llm, given.oracles)
    return answerers


def _hypernetworks(model: Model, given: Baselines) -> dict[str, Model]:
    """The hypernetworks that read text, by the `weights` of their methods."""
    return {"hypernet": model} | ({"instance": given.instance} if given.instance else {})


def _others(tasks: Sequence[Task]) -> list[Task]:
    by_name = {task.name: task for task in tasks}
    return [by_name[name] for name in misalign([task.name for task in tasks])]


def answer_rows(
    llm: LLM, answerers: dict[str, Answerer], rows: Sequence[Row], folder: Path, batch_tokens: int
) -> dict[str, float]:
    """Each row's score by key. Answers are appended to the folder as they arrive; existing ones are reused.

    Every process answers its share; the main one reads and writes for all.
    """
    scores: dict[str, float] = {}
    with together():
        if is_main():
            known = store.read_predictions(folder)
            scores = {row.key: float(known[row.key]["score"]) for row in rows if row.key in known}
    scores = from_main(scores)
    todo = deal([row for row in rows if row.key not in scores])
    provenance = partial(session, folder, len(scores), jax.local_devices()[:1])
    with in_main(provenance), progress_bar(not is_main()) as progress:
        bar = progress.add_task("answering", total=len(rows), completed=len(scores), rate="")
        for some in side_by_side(_answers(llm, answerers, todo, batch_tokens)):
            new = list(chain.from_iterable(some))
            with together():
                if is_main():
                    store.append(folder, new)
            scores |= {record["key"]: record["score"] for record in new}
            progress.advance(bar, len(new))
            speed = progress.tasks[bar].speed
            progress.update(bar, rate=f"{speed:.1f} answers/s" if speed else "")
    return scores


def deal(rows: Sequence[Row]) -> list[Row]:
    """This process's share of the rows: all those of its tasks."""
    own = set(share(list(dict.fromkeys(row.task.name for row in rows))))
    return [row for row in rows if row.task.name in own]


def _answers(
    llm: LLM, answerers: dict[str, Answerer], rows: Sequence[Row], batch_tokens: int
) -> Iterator[list[dict[str, Any]]]:
    """The records of answered rows, batch by batch."""
    questions, end = [row.question for row in rows], end_of_turn(llm.tokenizer)
    with ThreadPoolExecutor(2) as pool:
        for batch in answer_all(llm, answerers, questions, batch_tokens, end):
            answered = [rows[index] for index, _ in batch]
            texts = [_text(llm, row, answer) for row, (_, answer) in zip(answered, batch, strict=True)]
            scores = pool.map(_score, answered, texts)
            yield [_record(*one) for one in zip(answered, texts, scores, strict=True)]


def _text(llm: LLM, row: Row, answer: Answer) -> str:
    if isinstance(answer, int):
        return choices(row.task, row.task.test[row.example])[answer]
    return str(llm.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _score(row: Row, text: str) -> float:
    example = row.task.test[row.example]
    if row.question.choices:
        return float(text in {answer.strip() for answer in example.accepted})
    if row.task.metric == CODE_PASS:
        program = sandbox.program(example.input, text, example.test, example.entry_point)
        return float(sandbox.passes(program))
    return find_metric(row.task.metric)(text, example.accepted)


def _record(row: Row, text: str, score: float) -> dict[str, Any]:
    return {
        "split": row.split,
        "task": row.task.name,
        "method": row.method,
        "mode": row.mode,
        "wording": row.wording,
        "example": row.example,
        "prediction": text,
        "score": score,
        "key": row.key,
    }


def _collect(
    rows: Sequence[Row], scores: dict[str, float], modes: Sequence[PromptMode]
) -> tuple[report.Scores, dict[str, str]]:
    """Scores [wordings, examples] of every cell, and each task's metric."""
    cells: report.Cells = {}
    metrics = {}
    for row in rows:
        metrics[row.task.name] = "label accuracy" if row.question.choices else row.task.metric
        for mode in modes if row.mode == EITHER else (row.mode,):
            cell = cells.setdefault((mode, row.split, row.task.name, row.method), {})
            cell[row.wording, row.example] = scores[row.key]
    return report.gather(cells), metrics
