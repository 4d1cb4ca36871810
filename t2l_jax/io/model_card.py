"""The YAML at the top of a hypernetwork's model card, and the results in it, which come from an evaluation's report."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from t2l_jax.errors import UserError
from t2l_jax.io.cards import hub_id
from t2l_jax.io.files import read_json
from t2l_jax.io.yaml_file import parse_yaml
from t2l_jax.schema import Count, Schema, Text, checked

LIBRARY = "t2l_jax"
TAGS = ("text-to-lora", "hypernetwork", "lora", "jax")
PIPELINE = "text-generation"
PAPER = "https://arxiv.org/abs/2506.06105"
REPORT_FILE = "table.json"  # of an evaluation
METHOD = "aligned"  # in a report: adapters generated from the tasks' own descriptions
CARRIED = ("license", "language")  # fields that the card of a changed copy keeps
_TOP = re.compile(r"---\r?\n(.*?\n)---\r?\n", re.DOTALL)


class _Settings(Schema):
    model: Text  # its fingerprint
    tasks: Text


class _Entry(Schema):
    mode: str
    split: str
    task: str
    metric: str
    method: str
    minus: str
    mean: float
    low: float
    high: float
    tasks: Count


class _Report(Schema):
    settings: _Settings
    entries: list[_Entry]


def front_matter(base_name: str, facts: Mapping[str, str] | None = None, results: Sequence[EvalResult] = ()) -> str:
    """The YAML between its two lines of dashes; `facts` are fields that are known of this model alone."""
    fields: dict[str, Any] = {**(facts or {})}
    if base := hub_id(base_name):
        fields |= {"base_model": base, "base_model_relation": "adapter"}
    if results:
        fields |= {"eval_results": list(results), "model_name": f"{LIBRARY} hypernetwork"}
    data = ModelCardData(library_name=LIBRARY, pipeline_tag=PIPELINE, tags=list(TAGS), **fields)
    return f"---\n{data.to_yaml()}\n---\n\n"


def read_results(folder: Path, fingerprint: str) -> list[EvalResult]:
    """The averages of a report of `t2l evaluate`, one for each split and prompt mode, in percent.

    Raises UserError if the folder holds no report, or that of a model with another fingerprint.
    """
    path = folder / REPORT_FILE
    report = checked(_Report, read_json(path), str(path))
    if report.settings.model != fingerprint:
        raise UserError(f"{path}: the evaluation of another model: evaluate the one that is published")
    own = [entry for entry in report.entries if entry.method == METHOD and not entry.minus]
    metrics = {entry.metric for entry in own if entry.task}
    metric = metrics.pop() if len(metrics) == 1 else "score"  # tasks may have a metric each
    name = Path(report.settings.tasks).name
    return [
        EvalResult(
            task_type=PIPELINE,
            dataset_type=name,
            dataset_name=f"{name}: {entry.split} ({entry.tasks} task{'s' * (entry.tasks != 1)})",
            dataset_config=entry.mode,
            dataset_split=entry.split,
            metric_type=metric,
            metric_name=f"adapter from the description, percent, 95% interval [{entry.low:.1f}, {entry.high:.1f}]",
            metric_value=round(entry.mean, 1),
        )
        for entry in own
        if not entry.task
    ]


def known_facts(card: str) -> dict[str, str]:
    """What stays true of a changed copy of a model with this card. A card without usable YAML says nothing."""
    top = _TOP.match(card)
    try:
        fields = parse_yaml(top[1].encode(), "the card") if top else {}
    except UserError:
        return {}
    return {name: value for name in CARRIED if isinstance(value := fields.get(name), str)}
