"""Text to z: a frozen encoder reads the description of a task, and z is what the hypernetwork sees of it."""

from t2l_jax.encoder.sentence_transformers import (
    SHORT_NAMES,
    Encoder,
    LastTokenEncoder,
    TextEncoder,
    load_encoder,
    prepare,
    token_batches,
)

__all__ = ["SHORT_NAMES", "Encoder", "LastTokenEncoder", "TextEncoder", "load_encoder", "prepare", "token_batches"]
