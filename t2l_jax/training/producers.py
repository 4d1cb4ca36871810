"""Whatever makes adapters, behind one interface, so that one training step trains them all.

Axes: T tasks of a batch.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t2l_jax import hypernet
from t2l_jax.hypernet import HypernetConfig, Variables
from t2l_jax.lora import Adapter, LoraSpec, init_adapter

Extra = Float[Array, ""]  # a producer's own loss, added to the objective (vector quantisation has one)


class Producer(Protocol):
    """Variables and what the batch says of its tasks -> one adapter per task. A key switches dropout on."""

    @property
    def spec(self) -> LoraSpec: ...

    def init(self, key: PRNGKeyArray) -> Variables:
        """Fresh variables: "params" are trained, "constants" are not."""

    def adapters(
        self, variables: Variables, z: Float[Array, "T z"], task_ids: Int[Array, " T"], key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        """Adapters [T] and the producer's own loss."""


@dataclass(frozen=True)
class HypernetProducer:
    """The hypernetwork: adapters from descriptions."""

    config: HypernetConfig
    spec: LoraSpec

    def init(self, key: PRNGKeyArray) -> Variables:
        return hypernet.init(key, self.config, self.spec)

    def adapters(
        self, variables: Variables, z: Float[Array, "T z"], task_ids: Int[Array, " T"], key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        net: Any = hypernet.Hypernet(self.config, self.spec, train=key is not None)
        keys = jax.random.split(jax.random.key(0) if key is None else key, z.shape[0])

        def one(z: Float[Array, " z"], key: PRNGKeyArray) -> tuple[Adapter, dict]:
            return net.apply(variables, z, rngs={"dropout": key}, mutable=["losses"])

        adapters, sown = jax.vmap(one)(z, keys)
        return adapters, sum((jnp.mean(leaf) for leaf in jax.tree.leaves(sown)), start=jnp.zeros(()))


@dataclass(frozen=True)
class LoraTable:
    """One LoRA per task, all trained at once: the task-specific "oracles". One task: a shared multi-task LoRA."""

    num_tasks: int
    spec: LoraSpec

    def init(self, key: PRNGKeyArray) -> Variables:
        keys = jax.random.split(key, self.num_tasks)
        return {"params": jax.vmap(lambda key: init_adapter(key, self.spec))(keys)}

    def adapters(
        self, variables: Variables, z: Float[Array, "T z"], task_ids: Int[Array, " T"], key: PRNGKeyArray | None = None
    ) -> tuple[Adapter, Extra]:
        rows = jnp.zeros_like(task_ids) if self.num_tasks == 1 else task_ids
        return variables["params"][rows], jnp.zeros(())
