"""`t2l generate | unpack | chat | embed`: a trained hypernetwork in use."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from t2l_jax.cli import hub
from t2l_jax.cli.models import ModelLocation
from t2l_jax.cli.training import Distributed
from t2l_jax.errors import UserError


@dataclass(frozen=True)
class Generate:
    """Generate LoRA adapters from descriptions and save them as PEFT folders. The base LLM is not loaded.

    Each line of tasks.jsonl: {"name": "last", "description": "Answer with the last word."}
    Several hosts divide these lines; their output folder must be on a disk that they share. A single adapter is made by
    one process.

    Examples:
      t2l generate "Answer with the last word." --out last/
      t2l generate --from tasks.jsonl --out adapters/
      t2l generate --from tasks.jsonl --out packed/ --format packed --dtype bfloat16
      t2l generate "Answer with the last word." --instance "red green blue" --model runs/instances/model --out one/
      t2l generate --from tasks.jsonl --out adapters/ --push org/adapters
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
    format: Literal["folders", "packed"] = "folders"
    """With --from: one PEFT folder per adapter, or few files of some hundred adapters (see t2l unpack)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights on disk with --from."""
    base_name: Annotated[str | None, arg(metavar="NAME")] = None
    """Base model's name in the adapters' configuration. Default: its name on the hub. vLLM's filesystem resolver wants
    what `vllm serve` was given."""
    push: hub.Push = None
    private: hub.Private = False
    distributed: Distributed = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        single = self.description is not None or self.instance is not None
        if single == (self.file is not None):
            raise UserError("give either a description or --from tasks.jsonl")
        if single and self.distributed not in ("auto", "off"):
            raise UserError("--distributed divides the lines of --from tasks.jsonl: leave it out for a single adapter")
        if single and (self.format, self.dtype) != ("folders", "float32"):
            raise UserError(
                "--format and --dtype are for --from tasks.jsonl: a single adapter is a float32 PEFT folder"
            )
        if self.push is not None and self.format != "folders":
            raise UserError("--push is for --format folders: other programs read no packed adapters")
        hub.check_private(self.push, self.private)
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
        hub.check(self.push)
        model = load(self.model, trust_remote_code=self.trust_remote_code)
        adapter = model.generate(*(None if text is None else [text] for text in texts.values()))[0]
        source = "\n\n".join(text for text in texts.values() if text is not None)
        name = self.base_name or model.config.base_name
        save_peft(adapter, self.out, base_model=name, description=source)
        print(f"adapter for {name} written to {self.out}")
        hub.push(self.out, self.push, self.private)

    def _many(self, file: Path) -> None:
        from t2l_jax import bulk, distributed, load
        from t2l_jax.io.adapter_store import STORE_FILES

        distributed.start(self.distributed, stops=False)
        with distributed.together():
            requests = bulk.read_requests(file)
            if distributed.is_main():
                hub.check(self.push, len(requests) + len(STORE_FILES))
            model = load(self.model, trust_remote_code=self.trust_remote_code)
        packed = self.format == "packed"
        made = bulk.generate_to_folder(model, requests, self.out, self.batch, packed, self.dtype, self.base_name)
        if distributed.is_main():
            print(f"{made} adapters written, {len(requests)} in {self.out}")
        if self.push is not None:
            with distributed.together():
                if distributed.is_main():
                    bulk.write_card(model, self.out, self.base_name)
        hub.push(self.out, self.push, self.private)


@dataclass(frozen=True)
class Unpack:
    """Write adapters of a folder made by `t2l generate --format packed` as PEFT folders, in float32.

    Examples:
      t2l unpack packed/ last first --out adapters/
    """

    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """Folder of packed adapters."""
    names: Positional[Annotated[tuple[str, ...], arg(metavar="NAME")]]
    """Names of adapters."""
    out: Path = Path("adapters")
    """Output folder: one folder per adapter."""

    def run(self) -> None:
        from t2l_jax import save_peft
        from t2l_jax.io.files import atomic_folder
        from t2l_jax.io.packed import PackedAdapters

        if not self.names:
            raise UserError("give at least one name")
        packed = PackedAdapters(self.folder)
        for name in self.names:
            if name not in packed and name not in packed.lost:
                raise UserError(f"{self.folder} has no adapter named {name[:80]!r}")
        with atomic_folder(self.out) as target:
            for name in dict.fromkeys(self.names):
                text = packed.descriptions.get(name)
                save_peft(packed[name], target / name, base_model=packed.base_model, description=text)
        print(f"{len(set(self.names))} adapters written to {self.out}")


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
    fsdp: Annotated[int, arg(name="mesh.fsdp")] = 1
    """Number of devices that share the base model's weights and gather one layer at a time."""
    tensor: Annotated[int, arg(name="mesh.tensor")] = 1
    """Number of devices that compute each layer of the base model together (faster than mesh.fsdp)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

    def run(self) -> None:
        import jax

        from t2l_jax import load, load_peft
        from t2l_jax.decoder.generation import Sampling
        from t2l_jax.io.base import check_separate, load_config
        from t2l_jax.sharding import MeshConfig

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
        llm = model.load_base(mesh=MeshConfig(self.fsdp, self.tensor).of_weights())
        prompt = "> " if sys.stdin.isatty() else ""
        key = jax.random.key(self.seed)
        while message := _ask(prompt):
            if by_line:
                adapter = model.generate(descriptions, [message])[0]
            key, turn = jax.random.split(key)
            for piece in llm.stream(message, adapter=adapter, sampling=sampling, key=turn):
                print(piece, end="", flush=True)
            print()


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not {error.encoding} text ({error.reason}): convert it first") from error


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
    """Run Python code that comes with the text encoder. Only for an architecture that neither this package nor
    transformers knows; minilm and gte-large do not need it."""

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
