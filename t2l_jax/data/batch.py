"""An SFT batch: rows of tokens by task, and the conditions that the adapters are generated from.

Axes: T tasks, R rows of a task, S sequence.
"""

from flax import struct
from jaxtyping import Array, Float, Int

from t2l_jax.hypernet import Condition


@struct.dataclass
class Batch:
    """Rows of packed examples for T tasks, R rows each, and their prediction targets.

    `segments` is 1 on the shared prefix of a row, 2, 3, ... on its examples and 0 on padding; `positions` count from 0
    in every example, the shared prefix included. `targets[t, r, s]` is the token to predict from the hidden state at
    position s; `weights` sum to 1 over the batch, equally for all tasks and for all examples of a task, and are 0 where
    there is no target.
    """

    condition: Condition  # [T]
    tokens: Int[Array, "T R S"]
    segments: Int[Array, "T R S"]
    positions: Int[Array, "T R S"]
    targets: Int[Array, "T R S"]
    weights: Float[Array, "T R S"]


ROW_FIELDS = ("tokens", "segments", "positions", "targets", "weights")
