"""Text to z: a frozen encoder reads the description of a task, and z is what the hypernetwork sees of it."""

from t2l_jax.encoder.load import SHORT_NAMES, load_encoder
from t2l_jax.encoder.text import Encoder, embed_instances, prepare

__all__ = ["SHORT_NAMES", "Encoder", "embed_instances", "load_encoder", "prepare"]
