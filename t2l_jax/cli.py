"""`t2l generate | train | reconstruct | evaluate | publish | chat | embed | models | import | export`: thin layers."""

import inspect
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NoReturn, TypeVar, Union

import tyro
from tyro.conf import Positional, arg, subcommand

import t2l_jax
from t2l_jax.errors import Stopped, UserError

if TYPE_CHECKING:  # importing it takes seconds, so only `t2l train` does
    from t2l_jax.training.recipe import BaseRecipe

ModelLocation = Annotated[str | None, arg(metavar="MODEL")]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Generate:
    """Generate LoRA adapters from descriptions and save them as PEFT folders. The base LLM is not loaded.

    Each line of tasks.jsonl: {"name": "last", "description": "Answer with the last word."}

    Examples:
      t2l generate "Answer with the last word." --out last/
      t2l generate --from tasks.jsonl --out adapters/
      t2l generate "Answer with the last word." --instance "red green blue" --model runs/instances/model --out one/
    """

    description: Positional[Annotated[str | None, arg(metavar="DESCRIPTION")]] = None
    """Description of the task that the adapter should teach the base LLM."""
    file: Annotated[Path | None, arg(name="from", metavar="FILE")] = None
    """Read names and descriptions from a JSONL file, one adapter per line."""
    instance: Annotated[str | None, arg(metavar="TEXT")] = None
    """Input of the example to generate the adapter for, if the hypernetwork reads instances."""
    out: Path = Path("adapter")
    """Output folder: one adapter or, with --from, one folder per adapter and a manifest."""
    model: ModelLocation = None
    """Hypernetwork: a folder, hf:org/name or pypi:package==version. Default: the bundled one."""
    batch: int = 64
    """Number of adapters generated at a time with --from."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        single = self.description is not None or self.instance is not None
        if single == (self.file is not None):
            raise UserError("give either a description or --from tasks.jsonl")
        if self.file is not None:
            self._many(self.file)
        else:
            self._one()

    def _one(self) -> None:
        from t2l_jax import load, save_peft
        from t2l_jax.encoder import prepare
        from t2l_jax.io.files import refuse_existing

        texts = {"the description": self.description, "the instance": self.instance}
        for name, text in texts.items():
            if text is not None:
                prepare(text, name)
        refuse_existing(self.out)
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        adapter = model.generate(*(None if text is None else [text] for text in texts.values()))[0]
        source = "\n\n".join(text for text in texts.values() if text is not None)
        save_peft(adapter, self.out, base_model=model.config.base_name, description=source)
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
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""
    dry_run: bool = False
    """Only say what would be downloaded, the sizes of everything, and the memory that a device needs."""

    def run(self) -> None:
        from t2l_jax.training.dry_run import dry_run
        from t2l_jax.training.recipe import Recipe
        from t2l_jax.training.run import run

        assert isinstance(self.recipe, Recipe)
        if self.dry_run:
            print(dry_run(self.recipe))
            return
        written = run(self.recipe, self.out, self.wandb, trust_remote_code=self.trust_remote_code)
        print(f"written to {written}")


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
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        from t2l_jax.training.recipe import ReconstructionRecipe
        from t2l_jax.training.run import run

        assert isinstance(self.recipe, ReconstructionRecipe)
        recipe = replace(self.recipe, library=str(self.library))
        print(f"written to {run(recipe, self.out, self.wandb, trust_remote_code=self.trust_remote_code)}")


@dataclass(frozen=True)
class Evaluate(Generic[Settings]):
    """Compare generated adapters with the base model, prompting, control adapters and trained LoRAs.

    Repeat the command to resume an interrupted evaluation. Runs on one device, in float32.

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
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        from t2l_jax import load
        from t2l_jax.evaluation.evaluate import evaluate
        from t2l_jax.evaluation.plan import EvaluationConfig
        from t2l_jax.evaluation.weights import find_baselines

        assert isinstance(self.config, EvaluationConfig)
        trust = self.trust_remote_code
        baselines = find_baselines(self.multitask, self.oracles, self.one_hot, self.instance, trust_remote_code=trust)
        print(evaluate(load(self.model, trust_remote_code=trust), self.config, self.out, baselines))
        print(f"answers and tables written to {self.out}")


@dataclass(frozen=True)
class Chat:
    """Chat with the base model through an adapter, streaming its answers. An empty line ends the chat.

    Each line is answered independently; there is no conversation history. A hypernetwork that reads instances generates
    an adapter for each line.

    Examples:
      t2l chat --description "Answer with the last word."
      t2l chat --adapter last/
    """

    description: Annotated[str | None, arg(metavar="TEXT")] = None
    """Generate the adapter from this description."""
    adapter: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Load the adapter from this PEFT folder."""
    model: ModelLocation = None
    """Hypernetwork; it determines the base model. Default: the bundled one."""
    max_new_tokens: int = 256
    """Maximum number of tokens per answer."""
    temperature: float = 0.0
    """Sampling temperature: 0 is greedy decoding, 1 samples from the model's distribution."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the smallest set of tokens whose total probability reaches this."""
    seed: int = 0
    """Random seed for sampling."""
    trust_remote_code: bool = False
    """Let the text encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        import jax

        from t2l_jax import load, load_peft
        from t2l_jax.decoder.generation import Sampling
        from t2l_jax.io.base import check_separate, load_config

        if self.description is not None and self.adapter is not None:
            raise UserError("give --description or --adapter, not both")
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed must be from 0 to {2**31 - 1}, got {self.seed}")
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        descriptions = None if self.description is None else [self.description]
        by_line = model.config.reads_instances and self.adapter is None
        by_line = by_line and (descriptions is not None or not model.config.reads_text)
        adapter = None if by_line or descriptions is None else model.generate(descriptions)[0]
        if self.adapter is not None:
            adapter = load_peft(self.adapter, load_config(model.base))
            check_separate(model.base, adapter.spec.names)
        llm = model.load_base()
        prompt = "> " if sys.stdin.isatty() else ""
        key = jax.random.key(self.seed)
        while message := _ask(prompt):
            if by_line:
                adapter = model.generate(descriptions, [message])[0]
            key, turn = jax.random.split(key)
            for piece in llm.stream(message, adapter=adapter, sampling=sampling, key=turn):
                print(piece, end="", flush=True)
            print()


@dataclass(frozen=True)
class Embed:
    """Compute the task embeddings z of texts and save them as a float32 .npy array [texts, width].

    Uses the hypernetwork's own text encoder or, with --encoder, another one.

    Examples:
      t2l embed "Answer with the last word." "Translate to French" --out z.npy
    """

    texts: Positional[tuple[str, ...]]
    """Texts to embed."""
    out: Path = Path("z.npy")
    """Output file."""
    model: ModelLocation = None
    """Hypernetwork whose text encoder to use. Default: the bundled one."""
    encoder: Annotated[str | None, arg(metavar="ENCODER")] = None
    """Text encoder to use instead: minilm, gte-large, last-token:LOCATION, the location of a sentence-transformers
    model, or the folder of a LoRA adapter for a text encoder."""
    trust_remote_code: bool = False
    """Let the encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        import io

        import numpy as np

        from t2l_jax import load
        from t2l_jax.encoder import load_encoder, prepare
        from t2l_jax.io.files import atomic_write, refuse_existing

        if not self.texts:
            raise UserError("give at least one text")
        for index, text in enumerate(self.texts):
            prepare(text, f"description {index + 1}")
        refuse_existing(self.out, empty_folder=False)
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
    """Describe hypernetworks: base model, text encoder, adapter shape and size.

    Examples:
      t2l models
      t2l models runs/words/model
    """

    models: Positional[tuple[str, ...]] = ()
    """Hypernetworks to describe. Default: the bundled ones."""

    def run(self) -> None:
        from t2l_jax.io.published import pretrained_models
        from t2l_jax.model import describe

        print("\n\n".join(describe(model) for model in self.models or pretrained_models()))


@dataclass(frozen=True)
class Publish:
    """Export a trained hypernetwork to a folder that others can load.

    The folder contains config.json, model.safetensors, README.md and, if the text encoder has an adapter, encoder/.

    Examples:
      t2l publish runs/words --out smollm2-words
      t2l publish runs/words --encoder runs/encoder --alpha 13.6 --out smollm2-words
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of `t2l train`, or a published folder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Output folder."""
    encoder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """PEFT folder of an adapter to publish for the text encoder. Default: the model's own, if any."""
    alpha: Annotated[float | None, arg(metavar="ALPHA")] = None
    """LoRA alpha of the generated adapters; a smaller value weakens them. Default: the alpha of training."""

    def run(self) -> None:
        from t2l_jax.io.published import publish

        config = publish(self.run_folder, self.out, encoder=self.encoder, alpha=self.alpha)
        print(f"hypernetwork for {config.base_name} published to {self.out}")


@dataclass(frozen=True)
class Import:
    """Convert a checkpoint of the original Text-to-LoRA (SakanaAI/text-to-lora) to a hypernetwork of this package.

    The folder holds hypermod.pt, args.yaml and adapter_config.json; no code in it is run. The result writes the same
    adapters. A model that reads one-hot task identities becomes a run folder, for `t2l evaluate --one-hot`.

    Examples:
      t2l import train_outputs/sft/hyper_lora/20250601 --out model
      t2l import train_outputs/sft/hyper_lora/20250601/checkpoints/it_10000 --out model
    """

    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """The original's run folder, or one of its checkpoints/it_N."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Output folder."""

    def run(self) -> None:
        from t2l_jax.io.sakana import import_sakana

        config = import_sakana(self.folder, self.out)
        print(f"hypernetwork for {config.base_name} written to {self.out}")


@dataclass(frozen=True)
class Export:
    """Convert a hypernetwork to a checkpoint of the original Text-to-LoRA (SakanaAI/text-to-lora).

    Examples:
      t2l export model --format sakana --out checkpoint
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """Hypernetwork: a folder, hf:org/name or pypi:package==version; or the run folder of a one-hot one."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Output folder: hypermod.pt, args.yaml and adapter_config.json."""
    format: Literal["sakana"] = "sakana"
    """Layout to write."""

    def run(self) -> None:
        from t2l_jax.io.sakana_export import export_sakana

        config = export_sakana(self.model, self.out)
        print(f"hypernetwork for {config.base_name} written to {self.out}")


Command = Publish | Generate | Train[Any] | Reconstruct[Any] | Evaluate[Any] | Chat | Embed | Models | Import | Export


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `t2l`. A UserError prints one line to stderr and exits with status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):  # a name, or an answer, may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parse(arguments).run()
    except UserError as error:
        _refuse(str(error))
    except Stopped as stopped:
        print("t2l:", stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, a pager) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # of a path that nothing else has named yet
        _refuse(f"{error.filename or 'a file'}: {error.strerror or error}")
    except MemoryError:
        _refuse("the memory is not enough: ask for less at a time")


def _refuse(reason: str) -> NoReturn:
    print("t2l: error:", " ".join(reason.splitlines()), file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str]) -> Command:
    """Parse the arguments into a command; `train` with a recipe file takes its defaults from that recipe."""
    file = next((argument for argument in arguments if argument.endswith(".py")), None)
    commands: list[Any] = []
    for kind in (Generate, Train, Reconstruct, Evaluate, Publish, Chat, Embed, Models, Import, Export):
        name, text = kind.__name__.lower(), inspect.getdoc(kind) or ""
        chosen = arguments[:1] == [name]
        options: dict[str, Any] = {"description": text if chosen else text.split("\n")[0]}
        typed: Any = kind
        if kind is Train:
            typed = Train[None]
            if chosen:
                from t2l_jax.training.recipe import Recipe

                typed, options["default"] = Train[Recipe], Train(read_recipe(file, Recipe))
        if kind is Reconstruct:
            typed = Reconstruct[None]
            if chosen:
                from t2l_jax.training.recipe import ReconstructionRecipe

                typed = Reconstruct[ReconstructionRecipe]
                options["default"] = Reconstruct(tyro.MISSING, read_recipe(file, ReconstructionRecipe))
        if kind is Evaluate:
            typed = Evaluate[None]
            if chosen:
                from t2l_jax.evaluation.plan import EvaluationConfig

                typed = Evaluate[EvaluationConfig]
        commands.append(Annotated[typed, subcommand(name, **options)])
    union: Any = Union[tuple(commands)]  # noqa: UP007 (its members are known at run time only)
    command = tyro.cli(union, args=arguments, prog="t2l", description=t2l_jax.__doc__)
    named = command.file if isinstance(command, Train | Reconstruct) else None
    if named is not None and (file is None or named != Path(file)):
        raise UserError(f"{named}: a recipe is a Python file: give one whose name ends in .py")
    return command


def read_recipe(file: str | None, kind: "type[BaseRecipe]") -> "BaseRecipe":
    """The RECIPE that a recipe file defines; without a file, the default one of this class.

    Raises UserError if the file does not exist, its code fails, or it defines no RECIPE of this class.
    """
    if file is None:
        return kind()
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such recipe file")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(0), too, would end this command as if it had trained
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else [1, *own][-1]
        known = isinstance(error, UserError)
        what = str(error) if known else traceback.format_exception_only(error)[-1].strip()  # str(error) may fail, too
        raise UserError(f"{path}, line {line}: {what:.500}") from error
    if type(recipe) is not kind:
        raise UserError(
            f"{path}: a recipe file of this command must define RECIPE, a {kind.__module__}.{kind.__name__}"
        )
    return recipe


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not {error.encoding} text ({error.reason}): convert it first") from error
