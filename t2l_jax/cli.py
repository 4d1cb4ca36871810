"""`t2l generate | train | evaluate | publish | chat | embed | models`: each a few lines over the library."""

import inspect
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union

import tyro
from tyro.conf import Positional, arg, subcommand

import t2l_jax
from t2l_jax.errors import Stopped, UserError

if TYPE_CHECKING:  # importing it takes seconds: only `t2l train` waits for that
    from t2l_jax.training.recipe import Recipe

ModelLocation = Annotated[str | None, arg(metavar="MODEL")]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Generate:
    """Write adapters from descriptions, as PEFT folders. The base LLM's weights are not loaded.

    A line of tasks.jsonl: {"name": "last", "description": "Answer with the last word."}

    Examples:
      t2l generate "Answer with the last word." --out last/
      t2l generate --from tasks.jsonl --out adapters/
    """

    description: Positional[Annotated[str | None, arg(metavar="DESCRIPTION")]] = None
    """What the adapter shall make the base LLM do."""
    file: Annotated[Path | None, arg(name="from", metavar="FILE")] = None
    """A JSONL file with many descriptions, instead of one on the command line."""
    out: Path = Path("adapter")
    """Folder to write: one adapter, or with --from one folder per adapter and a manifest."""
    model: ModelLocation = None
    """Hypernetwork: a folder, hf:org/name or pypi:package==version. Default: the one in the package."""
    batch: int = 64
    """Adapters computed at a time, with --from."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        if self.description is not None and self.file is None:
            self._one(self.description)
        elif self.file is not None and self.description is None:
            self._many(self.file)
        else:
            raise UserError("give a description or --from tasks.jsonl (one of the two)")

    def _one(self, description: str) -> None:
        from t2l_jax import load, save_peft
        from t2l_jax.encoder import prepare
        from t2l_jax.io.files import refuse_existing

        prepare(description, "the description")
        refuse_existing(self.out)
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        adapter = model.generate([description])[0]
        save_peft(adapter, self.out, base_model=model.config.base_name, description=description)
        print(f"adapter for {model.config.base_name} written to {self.out}")

    def _many(self, file: Path) -> None:
        from t2l_jax import bulk, load

        requests = bulk.read_requests(file)
        made = bulk.generate_to_folder(
            load(self.model, trust_remote_code=self.trust_remote_code), requests, self.out, self.batch
        )
        print(f"{made} adapters written, {len(requests)} in {self.out}")


@dataclass(frozen=True)
class Train(Generic[Settings]):
    """Train a hypernetwork, or LoRAs to compare it with (--trainee). A run that was stopped continues.

    A recipe file is Python and defines RECIPE; every field of it can be set by a flag.

    Examples:
      t2l train experiments/recipes/smollm2_words.py --out runs/words --steps 100
      t2l train --tasks my_tasks --batch.tasks 3 --out runs/mine
    """

    recipe: Annotated[Settings, arg(name="")]
    experiment: Positional[Annotated[Path | None, arg(metavar="FILE.py")]] = None
    """Python file that defines RECIPE; it is run. Default: the values that --help shows, which train on word tasks."""
    out: Path = Path("runs/latest")
    """Run folder: metrics, curves, checkpoints, at the end model/ or, of LoRAs, adapters/. A stopped run continues."""
    wandb: Annotated[str | None, arg(metavar="PROJECT")] = None
    """Report to this project at Weights & Biases too (pip install wandb)."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        from t2l_jax.training.recipe import Recipe
        from t2l_jax.training.run import run

        assert isinstance(self.recipe, Recipe)
        written = run(self.recipe, self.out, self.wandb, trust_remote_code=self.trust_remote_code)
        print(f"written to {written}")


@dataclass(frozen=True)
class Evaluate(Generic[Settings]):
    """Compare adapters written from descriptions with the base model, prompts, other adapters and trained LoRAs.

    Killed and started again with the same words, it goes on where it was. It computes on one device, in float32.

    Examples:
      t2l evaluate --max-tasks 4 --examples 4
      t2l evaluate runs/words/model --tasks words --splits 'unseen combinations' --examples 50 --out results/words
      t2l evaluate --tasks path/to/tasks --only 'sni_*' 'boolq' --prompt both --out results/real
      t2l evaluate --methods base aligned misaligned --examples 5
      t2l evaluate --tasks path/to/tasks --multitask runs/multitask/adapters --oracles runs/oracles/adapters --out all
    """

    config: Annotated[Settings, arg(name="")]
    model: Positional[ModelLocation] = None
    """Hypernetwork to evaluate. Default: the one in the package."""
    multitask: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """PEFT folder of one LoRA that was trained on all tasks."""
    oracles: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder of PEFT folders, each a LoRA trained on one task and named like it."""
    one_hot: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run folder of a hypernetwork that was trained from task identities (t2l train --trainee one-hot)."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("evaluation")
    """Folder for the answers, predictions.jsonl, the table as .md, .csv, .json and .png, and environment.json: command,
    machine and time."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        from t2l_jax import load
        from t2l_jax.evaluation.evaluate import evaluate
        from t2l_jax.evaluation.plan import EvaluationConfig
        from t2l_jax.evaluation.weights import find_baselines

        assert isinstance(self.config, EvaluationConfig)
        baselines = find_baselines(self.multitask, self.oracles, self.one_hot)
        print(evaluate(load(self.model, trust_remote_code=self.trust_remote_code), self.config, self.out, baselines))
        print(f"answers and tables written to {self.out}")


@dataclass(frozen=True)
class Chat:
    """Talk to the base model through an adapter, word by word as it writes. An empty line ends it.

    Every line is answered by itself: nothing of what was said before is read again.

    Examples:
      t2l chat --description "Answer with the last word."
      t2l chat --adapter last/
    """

    description: Annotated[str | None, arg(metavar="TEXT")] = None
    """Make an adapter from this sentence."""
    adapter: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Use this PEFT folder."""
    model: ModelLocation = None
    """Hypernetwork, which names the base model. Default: the one in the package."""
    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 always takes the likeliest token; 1 draws from the model's own distribution."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that have so much probability together."""
    seed: int = 0
    """Of what is drawn."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        import jax

        from t2l_jax import load, load_peft
        from t2l_jax.decoder.generation import Sampling
        from t2l_jax.io.base import load_config

        if self.description is not None and self.adapter is not None:
            raise UserError("give --description or --adapter, not both")
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        adapter = None if self.description is None else model.generate([self.description])[0]
        if self.adapter is not None:
            adapter = load_peft(self.adapter, load_config(model.base))
        llm = model.load_base()
        prompt = "> " if sys.stdin.isatty() else ""
        key = jax.random.key(self.seed)
        while message := _ask(prompt):
            key, turn = jax.random.split(key)
            for piece in llm.stream(message, adapter=adapter, sampling=sampling, key=turn):
                print(piece, end="", flush=True)
            print()


@dataclass(frozen=True)
class Embed:
    """Embed texts: z, as the hypernetwork reads it, to an .npy file of float32 [texts, width].

    The encoder is the hypernetwork's own, or any other one.

    Examples:
      t2l embed "Answer with the last word." "Translate to French" --out z.npy
    """

    texts: Positional[tuple[str, ...]]
    """The texts."""
    out: Path = Path("z.npy")
    """File to write."""
    model: ModelLocation = None
    """Hypernetwork whose encoder it is. Default: the one in the package."""
    encoder: ModelLocation = None
    """Another encoder: minilm, gte-large, last-token:LOCATION, the location of a sentence-transformers model, or the
    folder of a LoRA adapter for one."""
    trust_remote_code: bool = False
    """Let the encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        import io

        import numpy as np

        from t2l_jax import load
        from t2l_jax.encoder import load_encoder
        from t2l_jax.io.files import atomic_write

        if not self.texts:
            raise UserError("give at least one text")
        if self.encoder is not None and self.model is not None:
            raise UserError("give --encoder or --model, not both")
        if self.encoder is None:
            encoder = load(self.model, trust_remote_code=self.trust_remote_code).encoder
        else:
            encoder = load_encoder(self.encoder, trust_remote_code=self.trust_remote_code)
        z = encoder.embed(self.texts)
        buffer = io.BytesIO()
        np.save(buffer, z)
        atomic_write(self.out, buffer.getvalue())
        print(f"{len(z)} embeddings of width {z.shape[1]} written to {self.out}")


@dataclass(frozen=True)
class Models:
    """Say what the hypernetwork is made for: its base model, text encoder, adapter shape and size.

    Examples:
      t2l models
      t2l models runs/words/model
    """

    models: Positional[tuple[str, ...]] = ()
    """Hypernetworks to describe. Default: those in the package."""

    def run(self) -> None:
        from t2l_jax.io.published import pretrained_models
        from t2l_jax.model import describe

        print("\n\n".join(describe(model) for model in self.models or pretrained_models()))


@dataclass(frozen=True)
class Publish:
    """Copy a trained hypernetwork to a folder of its own, for others to load.

    The folder holds config.json, model.safetensors, README.md and, if the text encoder has an adapter, encoder/.

    Examples:
      t2l publish runs/words --out smollm2-words
      t2l publish runs/words --encoder runs/encoder --alpha 13.6 --out smollm2-words
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of `t2l train`, or a published folder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder to write."""
    encoder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """PEFT folder of another adapter for the text encoder. Default: the adapter that the model has, if any."""
    alpha: Annotated[float | None, arg(metavar="ALPHA")] = None
    """LoRA alpha of the adapters that the model writes: less than in training makes them weaker. Default: the same."""

    def run(self) -> None:
        from t2l_jax.io.published import publish

        config = publish(self.run_folder, self.out, encoder=self.encoder, alpha=self.alpha)
        print(f"hypernetwork for {config.base_name} published to {self.out}")


Command = Publish | Generate | Train[Any] | Evaluate[Any] | Chat | Embed | Models


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `t2l`: bad input ends in one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parse(arguments).run()
    except UserError as error:
        print("t2l: error:", " ".join(str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print("t2l:", stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads our output (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe; a `train` with a recipe file starts from that file's recipe."""
    experiment = next((argument for argument in arguments if argument.endswith(".py")), None)
    commands: list[Any] = []
    for kind in (Generate, Train, Evaluate, Publish, Chat, Embed, Models):
        name, text = kind.__name__.lower(), inspect.getdoc(kind) or ""
        chosen = arguments[:1] == [name]
        options: dict[str, Any] = {"description": text if chosen else text.split("\n")[0]}
        typed: Any = kind
        if kind is Train:
            typed = Train[None]
            if chosen:
                from t2l_jax.training.recipe import Recipe

                typed, options["default"] = Train[Recipe], Train(read_experiment(experiment))
        if kind is Evaluate:
            typed = Evaluate[None]
            if chosen:
                from t2l_jax.evaluation.plan import EvaluationConfig

                typed = Evaluate[EvaluationConfig]
        commands.append(Annotated[typed, subcommand(name, **options)])
    union: Any = Union[tuple(commands)]  # noqa: UP007 (its members are known at run time only)
    command = tyro.cli(union, args=arguments, prog="t2l", description=t2l_jax.__doc__)
    named = command.experiment if isinstance(command, Train) else None
    if named is not None and (experiment is None or named != Path(experiment)):
        raise UserError(f"{named}: an experiment is a Python file, its name ends in .py")
    return command


def read_experiment(source: str | None) -> "Recipe":
    """The RECIPE of an experiment file; without a file, the paper's settings.

    Raises UserError where there is no such file, no RECIPE in it, or where its code fails.
    """
    from t2l_jax.training.recipe import Recipe

    if source is None:
        return Recipe()
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except Exception as error:
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, reason = (error.lineno, error.msg) if isinstance(error, SyntaxError) else ([1, *own][-1], error)
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {reason}") from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path}: an experiment file must define RECIPE, a t2l_jax.training.recipe.Recipe")
    return recipe


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""
