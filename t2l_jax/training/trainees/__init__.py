"""What can be trained. A new trainee is a class in a file of this folder, and a line in `TRAINEES`."""

from t2l_jax.training.trainees.base import Release, Trainee
from t2l_jax.training.trainees.hypernetworks import OneHotHypernetwork, TextHypernetwork
from t2l_jax.training.trainees.loras import LoraTable, SharedLora

__all__ = ["TRAINEES", "LoraTable", "OneHotHypernetwork", "Release", "SharedLora", "TextHypernetwork", "Trainee"]

# The word that a recipe and the command line use -> the class.
TRAINEES: dict[str, type[Trainee]] = {
    "hypernet": TextHypernetwork,
    "one-hot": OneHotHypernetwork,
    "multitask": SharedLora,
    "oracles": LoraTable,
}
