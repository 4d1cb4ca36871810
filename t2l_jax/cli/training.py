"""`t2l train | plan | reconstruct | evaluate`: the commands whose options are a configuration of the library's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from tyro.conf import Positional, arg

from t2l_jax.cli.models import ModelLocation

Distributed = Annotated[
    str,
    arg(
        metavar="auto|off|HOST:PORT",
        help="How this process finds the others that run the same command, one on each host. auto: as Slurm, Open MPI "
        "or Cloud TPU started them; off: it works alone; HOST:PORT: where process 0 waits, with JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID set for each.",
    ),
]
Settings = TypeVar("Settings")  # the configuration, or None where its slow module is not imported


@dataclass(frozen=True)
class Train(Generic[Settings]):
    """Train a hypernetwork, or baseline LoRAs (--trainee). Repeat the command to resume an interrupted run.

    A recipe is a Python file that defines RECIPE. Flags override its fields.

    Examples:
      t2l train experiments/recipes/smollm2_words.py --out runs/words --steps 100
      t2l train experiments/recipes/paper_mistral.py --dry-run
      t2l train --tasks my_tasks --batch.tasks 3 --out runs/mine
    """

    recipe: Annotated[Settings, arg(name="")]
    file: Positional[Annotated[Path | None, arg(metavar="FILE.py")]] = None
    """Recipe file: Python that defines RECIPE, which is executed. Default: the values shown here (word tasks)."""
    out: Path = Path("runs/latest")
    """Run folder: metrics, curves, checkpoints and, at the end, model/ (LoRAs: adapters/). Resumes an earlier run."""
    wandb: Annotated[str | None, arg(metavar="PROJECT")] = None
    """Also log to this Weights & Biases project (pip install wandb)."""
    distributed: Distributed = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""
    dry_run: bool = False
    """Only say what would be downloaded, the sizes of everything, and the memory that a device needs."""

    def run(self) -> None:
        from t2l_jax import distributed
        from t2l_jax.training.dry_run import dry_run
        from t2l_jax.training.recipe import Recipe
        from t2l_jax.training.run import run

        assert isinstance(self.recipe, Recipe)
        if self.dry_run:
            print(dry_run(self.recipe))
            return
        distributed.start(self.distributed)
        written = run(self.recipe, self.out, self.wandb, trust_remote_code=self.trust_remote_code)
        if distributed.is_main():
            print(f"written to {written}")


@dataclass(frozen=True)
class Plan(Generic[Settings]):
    """Compile a training step for devices that need not be here: memory, FLOPs, communication, the compiler's time.

    Nothing is downloaded or trained, but the shapes of the base LLM and of the text encoder must be known. For a TPU
    install its compiler, which needs none: pip install 'libtpu==0.0.42.*'. A large step takes minutes; an equal one,
    compiled before, is read from the cache.

    Examples:
      t2l plan experiments/recipes/paper_mistral.py --topology v5e:4x4 --batch.tasks 16
      t2l plan experiments/recipes/paper_llama.py --topology v5p:4x4x4 --batch.tasks 64 --mesh.fsdp 16
      t2l plan experiments/recipes/smollm2_words.py --topology cpu:8 --search
    """

    recipe: Annotated[Settings, arg(name="")]
    topology: str
    """Devices: v5e:4x4, v6e:16x16, v5p:4x4x4 (chips of a TPU slice), cpu:8, h100:8 (of this machine)."""
    file: Positional[Annotated[Path | None, arg(metavar="FILE.py")]] = None
    """Recipe file: Python that defines RECIPE, which is executed. Default: the values shown here (word tasks)."""
    search: bool = False
    """Also find the most tasks of a step for each rematerialisation, and the best mesh. Compiles many times."""

    def run(self) -> None:
        from t2l_jax.training.plan import plan, report
        from t2l_jax.training.plan_search import search
        from t2l_jax.training.recipe import Recipe
        from t2l_jax.training.topology import find_topology

        assert isinstance(self.recipe, Recipe)
        topology = find_topology(self.topology)  # before anything is computed
        print(report(plan(self.recipe, topology)))
        if self.search:
            print()
            for line in search(self.recipe, topology):
                print(line, flush=True)


@dataclass(frozen=True)
class Reconstruct(Generic[Settings]):
    """Train a hypernetwork to write the adapters of a library. Repeat the command to resume an interrupted run.

    A library is a folder of PEFT folders, one per task; the base LLM is not needed. Descriptions come from the task
    sources (--tasks) or from a description.txt in each adapter's folder. `t2l train experiments/recipes/library.py`
    makes a library; `t2l train --init-from RUN/model` goes on by fine-tuning on examples.

    Examples:
      t2l reconstruct runs/library/adapters --tasks family --out runs/reconstruction
      t2l reconstruct adapters/ --hypernet.head S --objective.loss factors --steps 500 --out runs/small
    """

    library: Positional[Annotated[Path, arg(metavar="LIBRARY")]]
    """Folder of PEFT folders, one per task, such as the adapters/ of t2l train --trainee oracles."""
    recipe: Annotated[Settings, arg(name="")]
    file: Positional[Annotated[Path | None, arg(metavar="FILE.py")]] = None
    """Recipe file: Python that defines RECIPE, a ReconstructionRecipe, and is executed. Default: the values shown."""
    out: Path = Path("runs/latest")
    """Run folder: metrics, curves, checkpoints and, at the end, model/. Resumes an earlier run."""
    wandb: Annotated[str | None, arg(metavar="PROJECT")] = None
    """Also log to this Weights & Biases project (pip install wandb)."""
    distributed: Distributed = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        from t2l_jax import distributed
        from t2l_jax.training.recipe import ReconstructionRecipe
        from t2l_jax.training.run import run

        assert isinstance(self.recipe, ReconstructionRecipe)
        distributed.start(self.distributed)
        recipe = replace(self.recipe, library=str(self.library))
        written = run(recipe, self.out, self.wandb, trust_remote_code=self.trust_remote_code)
        if distributed.is_main():
            print(f"written to {written}")


@dataclass(frozen=True)
class Evaluate(Generic[Settings]):
    """Compare generated adapters with the base model, prompting, control adapters and trained LoRAs.

    Repeat the command to resume an interrupted evaluation. Runs in float32. Several hosts divide the tasks, with the
    base LLM on each of them; the first one writes the output folder.

    Examples:
      t2l evaluate --max-tasks 4 --examples 4
      t2l evaluate runs/words/model --tasks words --splits 'unseen combinations' --examples 50 --out results/words
      t2l evaluate --tasks path/to/tasks --only 'sni_*' 'boolq' --prompt both --out results/real
      t2l evaluate --methods base aligned misaligned --examples 5
      t2l evaluate --tasks path/to/tasks --multitask runs/multitask/adapters --oracles runs/oracles/adapters --out all
    """

    config: Annotated[Settings, arg(name="")]
    model: Positional[ModelLocation] = None
    """Hypernetwork to evaluate. Default: the bundled one."""
    multitask: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """PEFT folder of a LoRA trained on all tasks (multi-task baseline)."""
    oracles: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of PEFT folders, one per task: the LoRA trained on that task, under the task's name."""
    one_hot: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run folder of a hypernetwork trained on one-hot task identities (t2l train --trainee one-hot)."""
    instance: Annotated[str | None, arg(metavar="MODEL")] = None
    """Hypernetwork that reads instances, or its run folder (t2l train --trainee instance, or instance-text)."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("evaluation")
    """Output folder: predictions.jsonl, the table as .md, .csv, .json and .png, and environment.json (command, machine,
    time)."""
    distributed: Distributed = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        from t2l_jax import distributed, load
        from t2l_jax.evaluation.evaluate import evaluate
        from t2l_jax.evaluation.plan import EvaluationConfig
        from t2l_jax.evaluation.weights import find_baselines

        assert isinstance(self.config, EvaluationConfig)
        distributed.start(self.distributed, stops=False)
        trust, given = self.trust_remote_code, (self.multitask, self.oracles, self.one_hot, self.instance)
        with distributed.together():
            baselines = find_baselines(*given, trust_remote_code=trust)
            model = load(self.model, trust_remote_code=trust)
        text = evaluate(model, self.config, self.out, baselines)
        if distributed.is_main():
            print(text)
            print(f"answers and tables written to {self.out}")
