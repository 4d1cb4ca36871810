"""An SFT batch: rows of tokens, task by task, and what the adapters of its tasks are written from.

Axes: T tasks, R rows of a task, S sequence.
"""

from flax import struct
from jaxtyping import Array, Float, Int

from t2l_jax.hypernet import Condition


@struct.dataclass
class Batch:
    """Rows of T tasks, R rows each, of several examples each, and where in them the answers are.

    `segments` is 1 on what all examples of a row begin with, numbers them 2, 3, ... and is 0 on padding; `positions`
    count from 0 in every example, what it shares included.
    `targets[t, r, s]` is the token that the hidden state of place s of the row is to predict; `weights` sum to 1 over
    the batch, equal for every task and for every example of a task, 0 where there is no target.
    """

    condition: Condition  # [T]
    tokens: Int[Array, "T R S"]
    segments: Int[Array, "T R S"]
    positions: Int[Array, "T R S"]
    targets: Int[Array, "T R S"]
    weights: Float[Array, "T R S"]


ROW_FIELDS = ("tokens", "segments", "positions", "targets", "weights")
