"""`t2l lm-eval`: adapters under EleutherAI's lm-evaluation-harness."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from t2l_jax.cli.models import ModelLocation
from t2l_jax.errors import UserError

if TYPE_CHECKING:
    from t2l_jax.lora import Adapter
    from t2l_jax.model import Model


@dataclass(frozen=True)
class LmEval:
    """Score the base model with adapters on tasks of EleutherAI's lm-evaluation-harness.

    It is an extra: pip install 't2l_jax[lm-eval]'. With --from each task has an adapter of its own, and they share
    batches. Each line of tasks.jsonl: {"name": "arc_easy", "description": "Answer questions about science."}
    A name also stands for the tasks whose names it begins (mmlu: mmlu_anatomy). Without adapters the base model itself
    is scored. A task's YAML file may name Python code of its own, which runs: give --include-path only what you trust.

    Examples:
      t2l lm-eval --tasks arc_easy boolq --description "Answer questions about science."
      t2l lm-eval --from tasks.jsonl --limit 100 --out scores.json
      t2l lm-eval --tasks mine --include-path my_yaml/ --adapter last/ --chat-template
    """

    tasks: Annotated[tuple[str, ...], arg(metavar="TASK [TASK ...]")] = ()
    """Names of the harness's tasks. Default: those of --from."""
    description: Annotated[str | None, arg(metavar="TEXT")] = None
    """Generate the adapter for all tasks from this description."""
    adapter: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Load the adapter for all tasks from this PEFT folder."""
    file: Annotated[Path | None, arg(name="from", metavar="FILE")] = None
    """Generate an adapter for each task: names and descriptions from a JSONL file."""
    model: ModelLocation = None
    """Hypernetwork; it determines the base model. Default: the bundled one."""
    include_path: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of further tasks as YAML files."""
    limit: int | None = None
    """Number of examples of each task. Default: all."""
    num_fewshot: int | None = None
    """Number of examples in the prompt. Default: the task's own."""
    chat_template: bool = False
    """Write prompts with the base model's chat template, after an empty system turn, as in training."""
    batch: int = 16
    """Number of rows computed at once."""
    max_length: int = 2048
    """Number of tokens that are read at once; longer prompts lose their beginning."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the scores to this JSON file."""
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        from t2l_jax import load
        from t2l_jax.io.files import atomic_write, refuse_existing

        if sum(given is not None for given in (self.description, self.adapter, self.file)) > 1:
            raise UserError("give one of --description, --adapter and --from")
        if not self.tasks and self.file is None:
            raise UserError("give --tasks, or --from tasks.jsonl")
        for name in ("limit", "num_fewshot", "batch", "max_length"):
            value = getattr(self, name)
            if value is not None and value < (name != "num_fewshot"):
                raise UserError(f"--{name.replace('_', '-')} is {value}: give a positive number")
        if self.out is not None:
            refuse_existing(self.out)
        try:
            import lm_eval
            from lm_eval.tasks import TaskManager
            from lm_eval.utils import make_table

            from t2l_jax.evaluation.harness import HarnessModel
        except ImportError as error:
            raise UserError(f"{error.name} is missing: pip install 't2l_jax[lm-eval]'") from error
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        adapters = self._adapters(model)
        manager = TaskManager(include_path=None if self.include_path is None else str(self.include_path))
        tasks = list(self.tasks or adapters)
        if unknown := [task for task in tasks if not manager.match_tasks([task])]:
            raise UserError(f"the harness has no task {unknown[0]!r}: lm-eval ls tasks lists those that it has")
        scored = HarnessModel(model.load_base(), adapters, batch=self.batch, max_length=self.max_length)
        found = lm_eval.simple_evaluate(
            scored,
            tasks=tasks,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=self.chat_template,
            task_manager=manager,
            torch_random_seed=None,
            log_samples=False,
        )
        if scored.unused:
            raise UserError(
                f"no task that was run is named {min(scored.unused)!r}, nor begins so: the harness's names of single "
                f"tasks are {', '.join(sorted(found['results']))[:200]}"
            )
        print(make_table(found))
        if self.out is not None:
            kept = {name: found[name] for name in ("results", "versions", "n-shot", "n-samples")}
            atomic_write(self.out, json.dumps(kept, indent=2, default=str) + "\n")

    def _adapters(self, model: "Model") -> "dict[str, Adapter]":
        """The tasks' adapters by name; "" is that of all tasks."""
        from t2l_jax.bulk import read_requests
        from t2l_jax.io.base import load_config
        from t2l_jax.io.peft import load_peft

        if self.adapter is not None:
            return {"": load_peft(self.adapter, load_config(model.base))}
        if self.description is not None:
            return {"": model.generate([self.description])[0]}
        if self.file is None:
            return {}
        requests = read_requests(self.file)
        batch = model.generate([request.description for request in requests])
        return {request.name: batch[index] for index, request in enumerate(requests)}
