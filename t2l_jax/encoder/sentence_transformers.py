"""Text encoders of sentence-transformers, run by PyTorch on the CPU, with a LoRA adapter or without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from t2l_jax.encoder.adapter import add_adapter
from t2l_jax.encoder.cache import embed_texts, fingerprint, with_progress
from t2l_jax.encoder.folder import Module, read_modules
from t2l_jax.encoder.text import prepare_all, warn_of_cuts
from t2l_jax.errors import UserError
from t2l_jax.io.files import read_json
from t2l_jax.io.locations import ModelFiles
from t2l_jax.schema import Schema, checked, shown

MAX_WIDTH = 2**20  # of an embedding


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A sentence-transformers model, run by PyTorch on the CPU in float32 with the pooling that its folder states.

    `adapter` is the folder of the LoRA adapter that was added to its weights, if any (see io/encoder_adapter.py). The
    model reads the beginning of a text that is too long for it (MiniLM: 256 tokens), and a warning says so.
    """

    name: str
    path: Path
    dim: int
    model: Any
    adapter: Path | None = None

    @classmethod
    def load(
        cls, files: ModelFiles, *, adapter: Path | None = None, trust_remote_code: bool = False
    ) -> "SentenceEncoder":
        """Load a model, with an adapter if one is given.

        Python code that comes with the model runs only with `trust_remote_code`. Raises UserError if the files hold no
        such model, and for code that was not allowed to run.
        """
        from sentence_transformers import SentenceTransformer  # here, since importing it takes seconds

        path = files.path
        _check_folder(path, trust_remote_code)
        try:
            with _no_loading_bars():
                model: Any = SentenceTransformer(
                    str(path),
                    device="cpu",
                    trust_remote_code=trust_remote_code,
                    local_files_only=not trust_remote_code,  # the code may lie in another repository
                    model_kwargs={"dtype": "float32", "use_safetensors": True},
                )
                dim = model.get_embedding_dimension()
        except Exception as error:  # what the libraries raise on a damaged folder has no limits
            raise UserError(f"{path}: its text encoder cannot be loaded: {_first_line(error)}") from error
        if type(dim) is not int or not 1 <= dim <= MAX_WIDTH:
            raise UserError(f"{path}: its text encoder says that its embeddings are {shown(dim)} wide")
        if trust_remote_code:
            _fill_buffers(model[0].auto_model)
        if adapter is not None:
            if not hasattr(model[0], "auto_model"):
                raise UserError(f"{path}: no transformer, so it takes no adapter; give {adapter} its own encoder")
            add_adapter(model[0].auto_model, adapter)
        return cls(files.location, path, dim, model.eval(), adapter)

    @cached_property
    def fingerprint(self) -> str:
        paths = (self.path,) if self.adapter is None else (self.path, self.adapter)
        return fingerprint("sentence-transformers", *paths)

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text; see `Encoder.embed`."""
        prepared = prepare_all(texts)
        z = embed_texts(self, self._encode, prepared, cache)
        if type(most := self.model.max_seq_length) is int:  # of some it is None, or infinite
            warn_of_cuts(self.name, most, prepared, self._are_cut)
        return z

    def _encode(self, texts: list[str]) -> np.ndarray:
        embeddings = np.empty((len(texts), self.dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for chosen in with_progress([by_length[i : i + 64] for i in range(0, len(texts), 64)], len(texts)):
            batch = [texts[index] for index in chosen]
            try:
                embeddings[chosen] = self.model.encode(batch, batch_size=len(batch), show_progress_bar=False)
            except Exception as error:  # see `load`
                raise UserError(f"{self.path}: its text encoder fails: {_first_line(error)}") from error
        return embeddings

    def _are_cut(self, texts: list[str]) -> list[bool]:
        tokens = self.model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return [len(ids) > self.model.max_seq_length for ids in tokens]


class _Dense(Schema):
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _AutoMap(Schema):
    AutoModel: str | None = None


class _Config(Schema):
    model_type: str | None = None
    auto_map: _AutoMap | None = None


def _check_folder(path: Path, trust_remote_code: bool) -> None:
    """Raise UserError for a folder that is no sentence-transformers model, or needs code that may not be run."""
    from transformers import CONFIG_MAPPING

    config_file = path / "config.json"
    modules = read_modules(path)
    config = checked(_Config, read_json(config_file) if config_file.exists() else {}, str(config_file))
    foreign = [module.type for module in modules if not module.type.startswith("sentence_transformers.")]
    foreign += [name for name in _activations(path, modules) if not name.startswith("torch.nn.")]
    if config.auto_map is not None and config.model_type not in CONFIG_MAPPING:
        foreign.append(config.auto_map.AutoModel or "its model class")
    if foreign and not trust_remote_code:
        raise UserError(
            f"{path}: needs Python code of its own ({', '.join(foreign)}). Read that code; if you trust it, "
            "pass trust_remote_code=True (on the command line: --trust-remote-code)"
        )


def _activations(path: Path, modules: Sequence[Module]) -> Iterator[str]:
    """The activations that dense layers name. For one that it may not import the library silently takes another."""
    for module in modules:
        file = path / module.path / "config.json"
        if module.type.endswith(".Dense") and file.exists():
            yield checked(_Dense, read_json(file), str(file)).activation_function


def _fill_buffers(model: Any) -> None:
    """Give a model the buffers that its constructor computes and its file does not hold, such as rotary frequencies.

    transformers 5 constructs models without memory and knows only its own models' buffers; remote code (GTE's) is left
    with whatever was in memory.
    """
    fresh = type(model)(model.config)
    stored = set(model.state_dict())
    for name, buffer in fresh.named_buffers():
        if name not in stored:
            model.get_buffer(name).copy_(buffer)


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar per model file."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    """The first line of what a library says, which may be long."""
    first = str(error).strip().split("\n")[0].strip()[:300]
    return first if " " in first else f"{type(error).__name__} {first}".strip()
