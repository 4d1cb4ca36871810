"""The lm-evaluation-harness with our model: its own `hf` model's scores, and each task with its adapter."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_published import WORDS, save_base

from t2l_jax import LLM
from t2l_jax.errors import UserError
from t2l_jax.evaluation.harness import HarnessModel
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter, init_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # of PEFT's
]
LENGTH = 24  # of what the model reads at once
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: {metric}
"""
MORE = {
    "multiple_choice": 'doc_to_choice: "{{choices}}"\n',
    "generate_until": "generation_kwargs:\n  until: [red]\n  max_gen_toks: 6\n  do_sample: false\n",
    "loglikelihood_rolling": "",
}
METRICS = {"multiple_choice": "acc", "generate_until": "exact_match", "loglikelihood_rolling": "word_perplexity"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def llm(base: Path) -> LLM:
    return LLM.load(base)


@pytest.fixture(scope="module")
def adapters(llm: LLM) -> list[Adapter]:
    keys = jax.random.split(jax.random.key(0), 2)
    spec = llm.config.lora_spec(rank=2)
    return [
        jax.tree.map(lambda leaf, key=key: leaf + jax.random.normal(key, leaf.shape), init_adapter(key, spec))
        for key in keys
    ]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of each kind; texts longer than LENGTH among them."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    for kind, more in MORE.items():
        data = folder / f"{kind}.jsonl"
        documents = [
            {"text": words(length), "answer": int(rng.integers(3)), "choices": [words(2), words(1), words(3)]}
            for length in (3, 5, 7, 40, 22)
        ]
        if kind == "generate_until":
            documents = [{**document, "answer": words(3)} for document in documents]
        if kind == "loglikelihood_rolling":
            documents = [{**document, "answer": document["text"]} for document in documents]
        data.write_text("\n".join(map(json.dumps, documents)))
        for name in (kind, f"{kind}_again"):
            text = TASK.format(name=f"tiny_{name}", data=data, kind=kind, metric=METRICS[kind]) + more
            (folder / f"{name}.yaml").write_text(text)
    return folder


def scores(model: Any, tasks: Path, names: list[str]) -> dict[str, Any]:
    """Every answer and metric of some tasks."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model, tasks=names, task_manager=manager, bootstrap_iters=0, torch_random_seed=None, log_samples=True
    )
    answers = {name: [sample["resps"] for sample in found["samples"][name]] for name in names}
    return {"answers": answers, "results": found["results"]}


def same(found: Any, wanted: Any) -> None:
    """Equal but for rounding."""
    assert found["answers"].keys() == wanted["answers"].keys()
    for name, answers in wanted["answers"].items():
        for mine, theirs in zip(found["answers"][name], answers, strict=True):
            assert flat(mine) == [pytest.approx(value, abs=1e-3) for value in flat(theirs)], name


def flat(value: Any) -> list[Any]:
    """Numbers, flags and texts in whatever lists."""
    if isinstance(value, list | tuple):
        return [one for part in value for one in flat(part)]
    return [value if isinstance(value, str) else float(value)]


NAMES = [f"tiny_{kind}" for kind in MORE]


@pytest.fixture(scope="module")
def theirs(base: Path, adapters: list[Adapter], tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the harness's own model says, without and with each adapter."""
    found = []
    for number, adapter in enumerate([None, *adapters]):
        options = {}
        if adapter is not None:
            folder = tmp_path_factory.mktemp("peft") / "adapter"
            save_peft(adapter, folder, base_model=str(base))
            options["peft"] = str(folder)
        model = HFLM(str(base), max_length=LENGTH, batch_size=2, device="cpu", dtype="float32", **options)
        found.append(scores(model, tasks, NAMES))
        assert number == 0 or flat(list(found[-1]["answers"].values())) != flat(list(found[0]["answers"].values()))
    return found


def test_scores_are_those_of_the_harness_itself(llm, tasks, theirs):
    same(scores(HarnessModel(llm, max_length=LENGTH, batch=3), tasks, NAMES), theirs[0])


def test_an_adapter_scores_as_it_does_in_peft(llm, adapters, tasks, theirs):
    same(scores(HarnessModel(llm, {"": adapters[0]}, max_length=LENGTH, batch=4), tasks, NAMES), theirs[1])


def test_tasks_of_one_run_have_adapters_of_their_own(llm, adapters, tasks, theirs):
    """The same task twice in a batch: with one adapter, and by the longer name with another."""
    names = [f"{name}{more}" for name in NAMES for more in ("", "_again")]
    named = {"tiny": adapters[0], **{f"{name}_again": adapters[1] for name in NAMES}}
    found = scores(HarnessModel(llm, named, max_length=LENGTH, batch=8), tasks, names)
    for more, wanted in (("", theirs[1]), ("_again", theirs[2])):
        own = {name: found["answers"][f"{name}{more}"] for name in NAMES}
        same({"answers": own}, wanted)


def test_a_task_that_no_adapter_is_named_for_has_none(llm, adapters, tasks, theirs):
    model = HarnessModel(llm, {"other": adapters[0]}, max_length=LENGTH)
    same(scores(model, tasks, NAMES), theirs[0])
    assert model.unused == {"other"}


def test_conversations_begin_with_an_empty_system_turn(llm):
    model, turns = HarnessModel(llm), [{"role": "user", "content": "red"}]
    given = [{"role": "system", "content": ""}, *turns]
    assert model.apply_chat_template(turns) == model.apply_chat_template(given)
    with pytest.raises(UserError, match="gen_prefix"):
        model.apply_chat_template(turns, add_generation_prompt=False)


def test_what_cannot_be_followed_is_refused(llm, adapters):
    model = HarnessModel(llm, max_length=LENGTH)

    def ask(**options: Any) -> Iterator[str]:
        return model.generate_until([Instance("generate_until", {}, ("red", options), 0, ("some", 0, 1))])

    with pytest.raises(UserError, match="some: generation_kwargs repetition_penalty cannot be followed"):
        ask(until=[], max_gen_toks=3, repetition_penalty=2.0)
    with pytest.raises(UserError, match="some: 24 tokens to generate leave no room"):
        ask(until=[], max_gen_toks=24)
    other = init_adapter(jax.random.key(0), llm.config.lora_spec(rank=3))
    with pytest.raises(UserError, match="must have the same modules, rank and alpha"):
        HarnessModel(llm, {"a": adapters[0], "b": other})
