"""The kinds of files that come from outside: a good folder of each, how it is damaged, and what reads it.

A reader returns what it computed, or raises UserError. Where transformers, peft or sentence-transformers read the same
files, their numbers are the reference: an input that both take must give the same ones.
"""

import contextlib
import io
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from fuzz import mutate
from tiny_published import WIDTH_Z, snapshot

TOKENS = np.asarray([[5, 7, 9, 11, 13, 6]], np.int32)
TOLERANCE = 1e-3


class WrongNumber(AssertionError):
    """A third answer: neither the reference's number nor a refusal."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Args:
        damaged: file of the good folder -> how it is changed. Others stay as they are.
        read: what a user's command does with the folder.
        reference: what the same folder gives elsewhere; None where nothing else reads it, or where it raises.
        weight: how many times as often as others it is tried.
        lenient: few inputs are refused, since what is damaged is left out with a warning.
    """

    damaged: dict[str, mutate.Mutation]
    read: Callable[[Path], Any]
    reference: Callable[[Path], Any] | None = None
    weight: float = 1.0
    lenient: bool = False


def read_base(folder: Path) -> np.ndarray:
    """Logits of the base model in a folder."""
    from t2l_jax.llm import LLM

    return np.asarray(LLM.load(folder)(TOKENS))


def reference_base(folder: Path) -> np.ndarray:
    return _torch_logits(folder)


def _torch_logits(folder: Path, **options: Any) -> np.ndarray:
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, attn_implementation="eager", dtype=torch.float32, **options)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()


def read_answer(folder: Path) -> Any:
    """The tokens of a prompt of the model in a folder."""
    from t2l_jax.decoder.chat_template import end_of_turn, render
    from t2l_jax.io.base import load_stop_ids, load_tokenizer
    from t2l_jax.io.locations import resolve

    files = resolve(folder)
    tokenizer = load_tokenizer(files)
    return render(tokenizer, "red blue"), load_stop_ids(files, tokenizer.eos_token_id), end_of_turn(tokenizer)


def read_adapter(folder: Path) -> np.ndarray:
    """Logits of the good base with the adapter in a folder."""
    from t2l_jax.io.peft import load_peft
    from t2l_jax.llm import LLM

    llm = LLM.load(folder.parent / "base")
    return np.asarray(llm(TOKENS, load_peft(folder, llm.config)))


def read_gguf_adapter(folder: Path) -> np.ndarray:
    """Logits of the good base with the adapter in a GGUF file."""
    from t2l_jax.io.gguf_adapter import load_gguf_adapter
    from t2l_jax.llm import LLM

    llm = LLM.load(folder.parent / "base")
    return np.asarray(llm(TOKENS, load_gguf_adapter(folder / "adapter.gguf", llm.config)))


def reference_adapter(folder: Path) -> np.ndarray:
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder.parent / "base", attn_implementation="eager")
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(model, str(folder)).eval()
        return adapted(torch.from_numpy(TOKENS).long()).logits.numpy()


def read_model(folder: Path) -> np.ndarray:
    """The adapters that a published hypernetwork writes."""
    from t2l_jax.hypernet import Condition
    from t2l_jax.io.peft import save_peft
    from t2l_jax.model import load

    adapters = load(folder).adapters(Condition(z=np.ones((2, WIDTH_Z), np.float32)))
    save_peft(adapters, folder / "adapters")
    return _finite(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(adapters)]))


def reference_gguf(folder: Path) -> np.ndarray:
    return _torch_logits(folder, gguf_file="model.gguf")


def read_tasks(folder: Path) -> Any:
    from t2l_jax.data.sources import read_mixture

    return read_mixture([str(folder)])


def read_requests(folder: Path) -> Any:
    from t2l_jax.bulk import read_requests

    return read_requests(folder / "tasks.jsonl")


def read_wheel(folder: Path) -> Any:
    from t2l_jax.io.files import os_errors_explained
    from t2l_jax.io.wheels import _unpack

    with os_errors_explained(folder):
        _unpack(next(folder.glob("*.whl")), folder / "unpacked")
    return sorted(folder.rglob("*"))


def read_encoder(folder: Path) -> np.ndarray:
    from t2l_jax.encoder import load_encoder

    return _finite(load_encoder(str(folder)).embed(["Say red.", "Say blue red"]))


def reference_encoder(folder: Path) -> np.ndarray:
    from t2l_jax.encoder.sentence_transformers import SentenceEncoder
    from t2l_jax.io.locations import resolve

    return SentenceEncoder.load(resolve(folder)).embed(["Say red.", "Say blue red"])


def read_evaluation(folder: Path) -> Any:
    """What going on with an evaluation reads: its settings, its answers, and the record of its sessions."""
    from t2l_jax.evaluation import store
    from t2l_jax.io.session import session

    store.check(folder, {"model": "a", "examples": 2})
    scores = [record["score"] for record in store.read_predictions(folder).values()]
    if not all(0 <= score <= 1 for score in scores):
        raise WrongNumber(f"scores {scores}")
    with session(folder, 0, jax.devices()[:1]):
        pass
    return scores


def _finite(array: Any) -> np.ndarray:
    found = np.asarray(array)
    if not np.isfinite(found).all():
        raise WrongNumber("what was computed is not finite")
    return found


def read_recipe(folder: Path) -> Any:
    from t2l_jax.cli import entry
    from t2l_jax.training.recipe import Recipe

    return entry.read_recipe(str(folder / "recipe.py"), Recipe)


def read_command(folder: Path) -> Any:
    """A command run in the folder: it ends well, or is refused with one line and leaves all files as they were."""
    from t2l_jax import cli
    from t2l_jax.errors import UserError

    before = snapshot(folder)
    stdin, stderr = sys.stdin, io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
        sys.stdin = io.StringIO("red blue\n")
        try:
            cli.main(json.loads((folder / "arguments.json").read_text()))
        except SystemExit as end:
            if end.code != 2:
                raise AssertionError(f"status {end.code}: {stderr.getvalue():.100}") from end
            if snapshot(folder) != before:
                raise AssertionError(f"refused, and something is left: {stderr.getvalue():.100}") from end
            raise UserError(stderr.getvalue().replace("\n", " ")[:500]) from end
        finally:
            sys.stdin = stdin


KINDS = {
    "base config.json": Kind({"base/config.json": mutate.json_text}, read_base, reference_base, 3),
    "base safetensors": Kind({"base/model.safetensors": mutate.safetensors}, read_base, reference_base, 2),
    "safetensors index": Kind({"shards/model.safetensors.index.json": mutate.json_text}, read_base, reference_base),
    "flax msgpack": Kind({"flax/flax_model.msgpack": mutate.head}, read_base),
    "gguf": Kind({"gguf/model.gguf": mutate.gguf}, read_base, reference_gguf, 3),
    "tokenizer": Kind(
        {
            "base/tokenizer.json": mutate.json_text,
            "base/tokenizer_config.json": mutate.json_text,
            "base/generation_config.json": mutate.json_text,
        },
        read_answer,
    ),
    "chat template": Kind({"base/chat_template.jinja": mutate.template}, read_answer, None, 2),
    "adapter_config.json": Kind({"adapter/adapter_config.json": mutate.json_text}, read_adapter, reference_adapter, 3),
    "adapter safetensors": Kind(
        {"adapter/adapter_model.safetensors": mutate.safetensors}, read_adapter, reference_adapter, 2
    ),
    "adapter gguf": Kind({"adapter-gguf/adapter.gguf": mutate.gguf}, read_gguf_adapter),
    "model config.json": Kind({"model/config.json": mutate.json_text}, read_model, None, 2),
    "model safetensors": Kind({"model/model.safetensors": mutate.safetensors}, read_model, None, 2),
    "task.yaml": Kind({"tasks/one/task.yaml": mutate.yaml_text}, read_tasks, None, 2, lenient=True),
    "task jsonl": Kind({"tasks/one/train.jsonl": mutate.json_lines}, read_tasks, lenient=True),
    "metadata.yaml": Kind({"registry/shout/metadata.yaml": mutate.yaml_text}, read_tasks),
    "requests": Kind({"requests/tasks.jsonl": mutate.json_lines}, read_requests),
    "wheel": Kind({"wheel/x-1.0-py3-none-any.whl": mutate.wheel}, read_wheel),
    "recipe": Kind({"recipe/recipe.py": mutate.python}, read_recipe),
    "command line": Kind({"commands/arguments.json": mutate.arguments}, read_command, weight=0.5),
    "encoder": Kind(
        {
            "encoder/config.json": mutate.json_text,
            "encoder/modules.json": mutate.json_text,
            "encoder/1_Pooling/config.json": mutate.json_text,
            "encoder/config_sentence_transformers.json": mutate.json_text,
            "encoder/sentence_bert_config.json": mutate.json_text,
            "encoder/tokenizer.json": mutate.json_text,
            "encoder/model.safetensors": mutate.safetensors,
        },
        read_encoder,
        reference_encoder,
    ),
    "evaluation": Kind(
        {
            "evaluation/settings.json": mutate.json_text,
            "evaluation/predictions.jsonl": mutate.json_lines,
            "evaluation/environment.json": mutate.json_text,
        },
        read_evaluation,
    ),
}


def prepare(name: str, seed: int, good: Path, scratch: Path) -> Path:
    """The damaged folder of one input, in `scratch`: what seed and kind make of the good files."""
    rng = random.Random(f"{name} {seed}")
    damaged = KINDS[name].damaged
    file = rng.choice(sorted(damaged))
    folder = copy(name, good, scratch)
    (scratch / file).write_bytes(damaged[file](rng, (good / file).read_bytes()))
    return folder


def copy(name: str, good: Path, scratch: Path) -> Path:
    """The good folder of a kind in `scratch`, which is emptied first; an adapter's base lies beside it."""
    shutil.rmtree(scratch, ignore_errors=True)
    folder = next(iter(KINDS[name].damaged)).split("/")[0]
    for each in {folder, "base"} if folder.startswith("adapter") else {folder}:
        shutil.copytree(good / each, scratch / each)
    return scratch / folder


def attempt(name: str, folder: Path) -> str:
    """Read one input. What came of it: "read", or "refused: ..."; anything else is raised.

    Raises WrongNumber if the reference gives other numbers.
    """
    from t2l_jax.errors import UserError

    kind = KINDS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = kind.read(folder)
        except UserError as error:
            if len(str(error)) > 2000 or "\n" in str(error):
                raise AssertionError(f"no single line: {error!s:.100}") from error
            return f"refused: {error}"
        if kind.reference is not None:
            try:
                expected = kind.reference(folder)
            except Exception:
                return "read, and the reference raises"
            scale = max(1.0, np.abs(np.nan_to_num(expected)).max())
            if not np.allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE, equal_nan=True):
                raise WrongNumber("the reference gives other numbers")
            return "read, as the reference does"
    return "read"
