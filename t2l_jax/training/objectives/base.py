"""The interface of objectives: a loss of adapters on a batch, with frozen arrays such as the base LLM's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.quantized import BaseKind
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import ModelFiles
from t2l_jax.lora import Adapter
from t2l_jax.sharding import param_sharding


class Objective:
    """What a run minimises.

    A pytree (`flax.struct.dataclass`) and an argument of the compiled step: its leaves are frozen arrays, such as the
    base LLM's; all other fields are static. A batch is any pytree whose leaves have the task as their first axis, and
    whose field `condition` holds the conditions of the adapters.
    """

    metrics: ClassVar[tuple[str, ...]]  # names of the metrics that `loss` returns
    best: ClassVar[str]  # the metric that selects the best weights
    rising: ClassVar[tuple[str, ...]] = ()  # metrics for which higher is better; for all others lower is

    def loss(
        self, adapter: Adapter, batch: Any, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """(Loss, metrics) of adapters [T] on a batch of T tasks. Deterministic without a key (validation)."""
        raise NotImplementedError

    def place(self, mesh: Mesh) -> Any:
        """The same objective with its arrays placed on the mesh."""
        return self

    def part(self, batch: Any, count: int) -> Any:
        """Scale a batch that is split into `count` parts, so that the mean loss of the parts is the batch's loss."""
        return batch

    def counts(self, batch: Any) -> dict[str, int]:
        """Amounts in a batch of host arrays by unit, such as "tokens", for rates. The first is shown."""
        raise NotImplementedError

    def batch_metrics(self, batch: Any) -> dict[str, float]:
        """Further metrics of a batch, logged with its step."""
        return {}


@dataclass(frozen=True)
class FrozenBase:
    """The base LLM of a run. Its weights are loaded on first use."""

    files: ModelFiles
    config: DecoderConfig
    decoder_of: Callable[[DecoderConfig, Mesh], Decoder]
    dtype: Any
    mesh: Mesh
    kind: BaseKind = "native"

    @cached_property
    def decoder(self) -> Decoder:
        return self.decoder_of(self.config, self.mesh)

    @cached_property
    def params(self) -> dict[str, Any]:
        return load_base(self.files, self.dtype, partial(param_sharding, self.mesh), self.kind)[1]
