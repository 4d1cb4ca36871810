"""Everything that can be trained. To add a trainee, write a class in this folder and list it in `TRAINEES`."""

from t2l_jax.training.trainees.base import Release, Trainee
from t2l_jax.training.trainees.hypernetworks import OneHotHypernetwork, TextHypernetwork
from t2l_jax.training.trainees.instances import InstanceHypernetwork, InstanceTextHypernetwork
from t2l_jax.training.trainees.joint import EncoderTraining, JointHypernetwork, join, trainable
from t2l_jax.training.trainees.loras import LoraTable, SeededLoraTable, SharedLora

__all__ = [
    "TRAINEES",
    "EncoderTraining",
    "InstanceHypernetwork",
    "InstanceTextHypernetwork",
    "JointHypernetwork",
    "LoraTable",
    "OneHotHypernetwork",
    "Release",
    "SeededLoraTable",
    "SharedLora",
    "TextHypernetwork",
    "Trainee",
    "join",
    "trainable",
]

# Name in recipes and on the command line -> class.
TRAINEES: dict[str, type[Trainee]] = {
    "hypernet": TextHypernetwork,
    "one-hot": OneHotHypernetwork,
    "instance": InstanceHypernetwork,
    "instance-text": InstanceTextHypernetwork,
    "multitask": SharedLora,
    "oracles": LoraTable,
    "oracles-seeds": SeededLoraTable,
}
