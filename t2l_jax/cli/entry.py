"""The entry point of `t2l`: arguments to a command, and what ends it to an exit status."""

import inspect
import os
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Union

import tyro
from tyro.conf import subcommand

import t2l_jax
from t2l_jax.cli.adapters import Mix
from t2l_jax.cli.harness import LmEval
from t2l_jax.cli.inference import Chat, Embed, Generate, Unpack
from t2l_jax.cli.models import Export, Import, Models, Publish
from t2l_jax.cli.serving import Serve
from t2l_jax.cli.training import Evaluate, Plan, Reconstruct, Train
from t2l_jax.errors import Stopped, UserError
from t2l_jax.io.files import cache_folder

if TYPE_CHECKING:  # importing it takes seconds, so only the commands that need it do
    from t2l_jax.training.recipe import BaseRecipe

Trained = Train[Any] | Plan[Any] | Reconstruct[Any]
Making = Generate | Unpack | Mix | Publish | Import | Export
Command = Making | Trained | Evaluate[Any] | LmEval | Chat | Serve | Embed | Models

# In the order of `t2l --help`.
COMMANDS = (
    *(Generate, Unpack, Mix, Train, Plan, Reconstruct, Evaluate, LmEval),
    *(Publish, Chat, Serve, Embed, Models, Import, Export),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `t2l`. A UserError prints one line to stderr and exits with status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):  # a name, or an answer, may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _keep_compiled()
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


def _keep_compiled() -> None:
    """What takes long to compile is compiled once: JAX, imported later, reads these from the environment."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _refuse(reason: str) -> NoReturn:
    print("t2l: error:", " ".join(reason.splitlines()), file=sys.stderr)
    sys.exit(2)


def parse(arguments: Sequence[str]) -> Command:
    """Parse the arguments into a command; `train` or `plan` with a recipe file takes its defaults from that recipe."""
    file = next((argument for argument in arguments if argument.endswith(".py")), None)
    commands: list[Any] = []
    for kind in COMMANDS:
        name, text = re.sub(r"(?<=.)([A-Z])", r"-\1", kind.__name__).lower(), inspect.getdoc(kind) or ""
        chosen = arguments[:1] == [name]
        options: dict[str, Any] = {"description": text if chosen else text.split("\n")[0]}
        typed: Any = kind
        if kind in (Train, Plan):
            typed = kind[None]
            if chosen:
                from t2l_jax.training.recipe import Recipe

                typed = kind[Recipe]
                given = read_recipe(file, Recipe)
                options["default"] = Train(given) if kind is Train else Plan(given, tyro.MISSING)
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
    named = command.file if isinstance(command, Train | Plan | Reconstruct) else None
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
