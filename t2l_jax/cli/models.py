"""`t2l models | publish | import | export`: hypernetworks as folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

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
