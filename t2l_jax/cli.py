"""`t2l generate | train | evaluate | chat | embed | models`: each a few lines over the library."""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Union, get_args

import tyro
from tyro.conf import Positional, arg, subcommand

import t2l_jax
from t2l_jax.errors import UserError
from t2l_jax.recipe import Recipe

ModelSource = Annotated[str | None, arg(metavar="SOURCE")]


@dataclass(frozen=True)
class Generate:
    """Write adapters from descriptions, as PEFT folders. The base LLM's weights are not loaded.

    Examples (lines of the JSONL file: {"name": "last", "description": "Answer with the last word."}):

    t2l generate "Answer with the last word." --out last/

    t2l generate --from tasks.jsonl --out adapters/
    """

    description: Positional[str | None] = None
    """What the adapter shall make the base LLM do."""
    source: Annotated[Path | None, arg(name="from")] = None
    """A JSONL file with many descriptions, instead of one on the command line."""
    out: Path = Path("adapter")
    """Folder to write: one adapter, or with --from one folder per adapter and a manifest."""
    model: ModelSource = None
    """Hypernetwork: a folder, hf:org/name or pypi:package==version. Default: the one in the package."""
    batch: int = 64
    """Adapters computed at a time, with --from."""

    def run(self) -> None:
        from t2l_jax import bulk, load, save_peft

        if (self.description is None) == (self.source is None):
            raise UserError("give a description or --from tasks.jsonl (one of the two)")
        if self.source is not None:
            requests = bulk.read_requests(self.source)
            made = bulk.generate_to_folder(load(self.model), requests, self.out, self.batch)
            print(f"{made} adapters written, {len(requests)} in {self.out}")
        else:
            assert self.description is not None
            model = load(self.model)
            adapter = model.generate([self.description])[0]
            save_peft(adapter, self.out, base_model=model.config.base_name, description=self.description)
            print(f"adapter for {model.config.base_name} written to {self.out}")


@dataclass(frozen=True)
class Train:
    """Train a hypernetwork. An experiment file holds a RECIPE; every field of it can be set here.

    Example:

    t2l train experiments/smollm2_words.py --out runs/words --steps 100
    """

    experiment: Positional[Path | None] = None
    """A Python file that defines RECIPE; it is run. Without one, the paper's settings."""
    out: Path = Path("runs/latest")
    """Run folder: metrics, checkpoints, and at the end model/. A run that was stopped goes on."""
    recipe: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    def run(self) -> None:
        from t2l_jax import recipe

        print(f"model written to {recipe.run(self.recipe, self.out)}")


@dataclass(frozen=True)
class Evaluate:
    """Score base model, base with the description in the prompt, aligned and misaligned adapters.

    Examples:

    t2l evaluate --tasks words

    t2l evaluate runs/words/model --tasks path/to/tasks --examples 20 --out results/
    """

    model: Positional[ModelSource] = None
    """Hypernetwork to evaluate. Default: the one in the package."""
    tasks: str = "words"
    """`words`, or a folder of task folders."""
    examples: int = 5
    """Test examples per task."""
    draws: int = 3
    """Wordings per task, each scored by itself: preferably ones that were never trained on."""
    max_tasks: int = 70
    """Tasks of each split, evenly spread."""
    out: Path | None = None
    """Folder for table.md and scores.jsonl."""

    def run(self) -> None:
        from t2l_jax import load
        from t2l_jax.evaluation.tables import evaluate_tasks

        print(evaluate_tasks(load(self.model), self.tasks, self.examples, self.draws, self.max_tasks, self.out))


@dataclass(frozen=True)
class Chat:
    """Talk to the base model through an adapter, word by word as it writes. An empty line ends it.

    Examples:

    t2l chat --description "Answer with the last word."

    t2l chat --adapter last/
    """

    description: str | None = None
    """Make an adapter from this sentence."""
    adapter: Path | None = None
    """Use this PEFT folder."""
    model: ModelSource = None
    """Hypernetwork, which names the base model. Default: the one in the package."""
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def run(self) -> None:
        from t2l_jax import load, load_peft
        from t2l_jax.generation import Sampling

        if self.description is not None and self.adapter is not None:
            raise UserError("give --description or --adapter, not both")
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p)
        model = load(self.model)
        adapter = None if self.description is None else model.generate([self.description])[0]
        llm = model.load_base()
        if self.adapter is not None:
            adapter = load_peft(self.adapter, llm.config)
        prompt = "> " if sys.stdin.isatty() else ""
        while message := _ask(prompt):
            for piece in llm.stream(message, adapter=adapter, sampling=sampling):
                print(piece, end="", flush=True)
            print()


@dataclass(frozen=True)
class Embed:
    """Embed texts: z, as the hypernetwork reads it, to an .npy file of float32 [texts, width].

    Example:

    t2l embed "Answer with the last word." "Translate to French" --out z.npy
    """

    texts: Positional[tuple[str, ...]]
    """The texts."""
    out: Path = Path("z.npy")
    """File to write."""
    encoder: str = "minilm"
    """minilm, gte-large, last-token:SOURCE, or any sentence-transformers source."""
    trust_remote_code: bool = False
    """Let the encoder's own Python code run (gte-large needs it)."""

    def run(self) -> None:
        import io

        import numpy as np

        from t2l_jax.embed import load_encoder
        from t2l_jax.io.files import atomic_write

        if not self.texts:
            raise UserError("give at least one text")
        z = load_encoder(self.encoder, trust_remote_code=self.trust_remote_code).embed(self.texts)
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

    sources: Positional[tuple[str, ...]] = ()
    """Hypernetworks to describe. Default: those in the package."""

    def run(self) -> None:
        from t2l_jax.model import describe, packaged

        print("\n\n".join(describe(source) for source in self.sources or packaged()))


Command = Generate | Train | Evaluate | Chat | Embed | Models


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `t2l`: bad input ends in one line on stderr and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parse(arguments).run()
    except UserError as error:
        print(f"t2l: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe; a `train` with an experiment file starts from that file's recipe."""
    train = Train()
    if arguments[:1] == ["train"] and len(arguments) > 1 and arguments[1].endswith(".py"):
        train = Train(recipe=read_experiment(Path(arguments[1])))
    commands = [
        Annotated[
            kind,
            subcommand(
                kind.__name__.lower(),
                description=(kind.__doc__ or "").split("\n")[0],
                **({"default": train} if kind is Train else {}),
            ),
        ]
        for kind in get_args(Command)
    ]
    return tyro.cli(Union[tuple(commands)], args=arguments, prog="t2l", description=t2l_jax.__doc__)  # type: ignore


def read_experiment(path: Path) -> Recipe:
    """The RECIPE of an experiment file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such experiment file")
    recipe = runpy.run_path(str(path)).get("RECIPE")
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path}: an experiment file must define RECIPE, a t2l_jax.recipe.Recipe")
    return recipe


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""
