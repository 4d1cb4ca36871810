"""`t2l mix`: new adapters from adapters that are there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from t2l_jax.errors import UserError


@dataclass(frozen=True)
class Mix:
    """Add LoRA adapters of one base model with weights, and save the sum as a PEFT folder.

    Methods (cat and svd are those of PEFT's add_weighted_adapter):
      cat      the exact sum of the changes to the base model; the ranks add up
      svd      the closest adapter to that sum of a small rank; prints how far it is from it
      factors  the sums of A and of B, for adapters of one hypernetwork; keeps their rank

    A negative weight subtracts.

    Examples:
      t2l mix last/ french/ --weights 0.5 0.5 --out both/
      t2l mix last/ french/ --weights 0.5 0.5 --method svd --rank 8 --out both/
      t2l mix last/ french/ --weights 1 -1 --out difference/
    """

    folders: Positional[Annotated[tuple[Path, ...], arg(metavar="FOLDER")]]
    """PEFT folders of the adapters."""
    weights: Annotated[tuple[float, ...], arg(metavar="WEIGHT")]
    """Weight of each adapter, in the same order."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Output folder: one adapter in PEFT's format."""
    method: Literal["cat", "svd", "factors"] = "cat"
    """What is added, and what rank the sum has."""
    rank: Annotated[int | None, arg(metavar="RANK")] = None
    """Rank of the result with svd. Default: the largest of the adapters' ranks."""

    def run(self) -> None:
        from t2l_jax import algebra, load_peft, save_peft
        from t2l_jax.io.files import refuse_existing
        from t2l_jax.io.peft import base_model

        if self.rank is not None and self.method != "svd":
            raise UserError(f"--rank is for --method svd: with {self.method} the adapters give the rank")
        if not self.folders:
            raise UserError("give at least one folder of an adapter")
        refuse_existing(self.out)
        base, *others = [base_model(folder) for folder in self.folders]
        for folder, other in zip(self.folders[1:], others, strict=True):
            if other != base:
                raise UserError(
                    f"{folder}: an adapter for {other or 'a base model without a name'}, {self.folders[0]} is one for "
                    f"{base or 'one without a name'}: mix adapters of one base_model_name_or_path"
                )
        adapters, lost = [load_peft(folder) for folder in self.folders], ""
        try:
            add = algebra.mix if self.method == "factors" else algebra.concatenate
            mixed = add(adapters, self.weights)
            if self.method == "svd":
                rank = max(adapter.spec.rank for adapter in adapters) if self.rank is None else self.rank
                mixed, error = algebra.compress(mixed, rank)
                lost = f", relative error {float(error):.2g}"
        except UserError as error:
            raise UserError(f"{', '.join(map(str, self.folders))}: {error}") from error
        save_peft(mixed, self.out, base_model=base)
        print(f"adapter of rank {mixed.spec.rank} written to {self.out}{lost}")
