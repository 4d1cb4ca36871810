"""What every objective is: a loss of adapters on a batch, and what it needs that is frozen."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import ModelFiles
from t2l_jax.lora import Adapter
from t2l_jax.sharding import param_sharding


class Objective:
    """What a run minimises.

    A pytree (`flax.struct.dataclass`): its leaves are frozen arrays, such as the base LLM's, and an argument of the
    compiled step; everything else about it is static. A batch is any pytree whose field `condition` is what the
    adapters are written from, and whose leaves all have the task as their first axis.
    """

    metrics: ClassVar[tuple[str, ...]]  # the names of what `loss` returns beside the loss
    best: ClassVar[str]  # the metric that decides which weights are kept
    rising: ClassVar[tuple[str, ...]] = ()  # metrics of which more is better; of all others less is

    def loss(
        self, adapter: Adapter, batch: Any, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """(Loss, metrics) of the adapters [T] on a batch of T tasks. Without a key (validation) nothing is random."""
        raise NotImplementedError

    def place(self, mesh: Mesh) -> Any:
        """The same objective with its arrays where the mesh wants them."""
        return self

    def part(self, batch: Any, count: int) -> Any:
        """A batch that was cut into `count` parts, scaled so that the mean over the parts is the whole batch's loss."""
        return batch

    def counts(self, batch: Any) -> dict[str, int]:
        """What a batch of host arrays holds, by its unit ("tokens"): the run's rates. The first is shown."""
        raise NotImplementedError

    def batch_metrics(self, batch: Any) -> dict[str, float]:
        """Further numbers about a batch that are written down with its step."""
        return {}


@dataclass(frozen=True)
class FrozenBase:
    """The base LLM of a run. Its weights are read when an objective asks for them."""

    files: ModelFiles
    config: DecoderConfig
    decoder_of: Callable[[DecoderConfig], Decoder]
    dtype: Any
    mesh: Mesh

    @cached_property
    def decoder(self) -> Decoder:
        return self.decoder_of(self.config)

    @cached_property
    def params(self) -> dict[str, Any]:
        return load_base(self.files, self.dtype, partial(param_sharding, self.mesh))[1]
