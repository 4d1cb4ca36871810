"""The paper in one file: a hypernetwork that writes a LoRA adapter from a task embedding.

Charakorn, Cetin, Tang, Lange, "Text-to-LoRA: Instant Transformer Adaption", ICML 2025, arXiv 2506.06105, section 3.

Axes: D latent width, L layers, M modules (adapted projections), r rank, i/o input/output width of a projection.

Everything is written for one query (one task, one module, one layer; in S also one side and one row of A or B) and
lifted by vmap. A batch of tasks is `jax.vmap` over their conditions; see `write_adapters`.

    query      phi = [task, depth, type]                                        eq. (2): what is asked for
    trunk      x   = mixer(phi);  x = x + mlp1(x)
    L          h   = mlp3(x + mlp2(x))                          one head output holds A and B whole
    M          y   = x + side(A|B);  h = mlp3(y + mlp2(y))      one head output holds A or B
    S          y as in M, and a row embedding; one head output  is one row of A or of B transposed
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t2l_jax.errors import UserError
from t2l_jax.lora import Adapter, LoraModule, LoraSpec, init_adapter
from t2l_jax.schema import Count

Variables = dict[str, Any]  # Linen collections: "params" are trained, "constants" are not; both are published


@struct.dataclass
class Condition:
    """What the hypernetwork is conditioned on for one task. Leading axes mean many tasks.

    A pytree, so that other inputs (examples, a document) can be added; code that pads, places or batches conditions
    maps over its leaves. An unused field is None.
    """

    z: Float[Array | np.ndarray, "*T z"] | None = None  # task embedding of the description, float32
    task: Int[Array | np.ndarray, "*T"] | None = None  # index among the run's tasks, for trainees that read no text


@dataclass(frozen=True)
class TaskEncoderConfig:
    """How the task embedding z is encoded.

    `linear` projects z, a sentence embedding or a one-hot task identity. The others use a codebook of learned vectors:
    `discrete` picks one with a straight-through gradient, `vq` picks the nearest (van den Oord et al., arXiv
    1711.00937; its loss is sown into the collection "losses"), `softmax` mixes them.
    """

    dim: Count = 384
    """Width of z. Leave it out in a recipe: it follows from the text encoder."""
    kind: Literal["linear", "discrete", "vq", "softmax"] = "linear"
    """How z is encoded; see above."""
    codebook: Count = 64
    """Number of codebook vectors (not for linear)."""

    def __post_init__(self) -> None:
        for name, size in (("dim", self.dim), ("codebook", self.codebook)):
            if size < 1:
                raise UserError(f"hypernet.task.{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class HypernetConfig:
    """Sizes and variants of the hypernetwork (paper, section 3.2 and appendix)."""

    task: TaskEncoderConfig = TaskEncoderConfig()
    head: Literal["L", "M", "S"] = "L"
    """Architecture: one output of the head holds A and B (L), A or B (M), or one row of A or of B transposed (S)."""
    latent: Count = 128
    """Latent width D, a multiple of 4."""
    head_in: Count = 512
    """Input width of the head."""
    dropout: float = 0.05
    """Dropout in the hypernetwork's MLPs."""
    rotary_rows: bool = False
    """S only: encode the row by rotation instead of a row embedding."""
    init: Literal["sft", "reconstruction"] = "sft"
    """Initialisation of the head. sft: adapters initially leave the base model unchanged; reconstruction: random."""
    offset: Literal["none", "frozen", "learned"] = "none"
    """Adapter added to every output: none, frozen (from --offset-init or --init-from) or learned."""

    def __post_init__(self) -> None:
        if self.latent < 4 or self.latent % 4:
            raise UserError(f"hypernet.latent must be a multiple of 4 and above 0, got {self.latent}")
        if self.head_in < 1:
            raise UserError(f"hypernet.head_in must be at least 1, got {self.head_in}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"hypernet.dropout must be at least 0 and below 1, got {self.dropout}")


def lift(function: Any, module: nn.Module, *args: Any, in_axes: Any = 0) -> Any:
    """`jax.vmap` of function(module, *args) with shared parameters and independent dropout."""
    shared: dict[Any, Any] = {"params": None, "constants": None}
    lifted = nn.vmap(function, in_axes=in_axes, variable_axes=shared, split_rngs={"params": False, "dropout": True})
    return lifted(module, *args)


class TaskEncoder(nn.Module):
    """z -> the task part of the query."""

    config: TaskEncoderConfig
    width: int

    @nn.compact
    def __call__(self, z: Float[Array, " z"]) -> Float[Array, " e"]:
        kind, size = self.config.kind, self.config.codebook
        norm = nn.LayerNorm(epsilon=1e-5, name="norm")
        if kind == "linear":
            return norm(nn.Dense(self.width, name="linear")(z))
        codebook = self.param("codebook", nn.initializers.normal(1.0), (size, self.width))
        if kind == "vq":
            latent = nn.Dense(self.width, name="linear")(z)
            nearest = codebook[jnp.argmin(jnp.sum((codebook - latent[None]) ** 2, axis=-1))]
            pull = jnp.mean((nearest - jax.lax.stop_gradient(latent)) ** 2)
            commit = jnp.mean((jax.lax.stop_gradient(nearest) - latent) ** 2)
            self.sow("losses", "vq", pull + 0.25 * commit)
            return norm(latent + jax.lax.stop_gradient(nearest - latent))
        weights = jax.nn.softmax(nn.Dense(size, name="linear")(z))
        if kind == "discrete":
            choice = jax.nn.one_hot(jnp.argmax(weights), size)
            weights = weights + jax.lax.stop_gradient(choice - weights)
        return norm(weights @ codebook)


class Mlp(nn.Module):
    """(LN or dropout,) Linear(D -> 4D), SiLU, dropout, Linear(4D -> width), SiLU (, dropout)."""

    width: int
    hidden: int
    dropout: float
    first: Literal["norm", "drop"] = "norm"
    last_drop: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, " d"], train: bool) -> Float[Array, " w"]:
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x) if self.first == "norm" else drop()(x)
        x = drop()(nn.silu(nn.Dense(self.hidden, name="up")(x)))
        x = nn.silu(nn.Dense(self.width, name="down")(x))
        return drop()(x) if self.last_drop else x


class Query(nn.Module):
    """One query (task, module, layer) to what the head reads: [head_in]; in M [2, head_in]; in S [2, r, head_in]."""

    config: HypernetConfig
    spec: LoraSpec
    train: bool

    def setup(self) -> None:
        width, hidden, drop = self.config.latent, 4 * self.config.latent, self.config.dropout
        self.depth = nn.Embed(self.spec.num_layers, width // 4)
        self.depth_norm = nn.LayerNorm(epsilon=1e-5)
        self.type = nn.Embed(len(self.spec.modules), width // 4)
        self.type_norm = nn.LayerNorm(epsilon=1e-5)
        self.mixer = Mlp(width, hidden, drop, first="drop")
        self.mlp1 = Mlp(width, hidden, drop)
        self.mlp2 = Mlp(width, hidden, drop)
        self.mlp3 = Mlp(self.config.head_in, hidden, drop, last_drop=False)
        if self.config.head != "L":
            self.side = nn.Embed(2 * len(self.spec.modules), width)
            self.side_norm = nn.LayerNorm(epsilon=1e-5)
        if self.config.head == "S" and not self.config.rotary_rows:
            self.row = nn.Embed(self.spec.rank, width)
            self.row_norm = nn.LayerNorm(epsilon=1e-5)

    def __call__(self, task: Float[Array, " e"], module: Int[Array, ""], layer: Int[Array, ""]) -> Float[Array, "..."]:
        depth, kind = self.depth_norm(look_up(self.depth, layer)), self.type_norm(look_up(self.type, module))
        x = self.mixer(jnp.concatenate([task, depth, kind]), self.train)
        x = x + self.mlp1(x, self.train)
        if self.config.head == "L":
            return self.mlp3(self._residual(x), self.train)
        return lift(Query.one_side, self, x, 2 * module + jnp.arange(2), in_axes=(None, 0))

    def one_side(self, x: Float[Array, " D"], side: Int[Array, ""]) -> Float[Array, "..."]:
        """A or B of one query (M and S)."""
        y = self._residual(x + self.side_norm(look_up(self.side, side)))
        if self.config.head == "M":
            return self.mlp3(y, self.train)
        return lift(Query.one_row, self, y, jnp.arange(self.spec.rank), in_axes=(None, 0))

    def one_row(self, u: Float[Array, " D"], row: Int[Array, ""]) -> Float[Array, " h"]:
        """One row of A, or of B transposed (S)."""
        if self.config.rotary_rows:
            return self.mlp3(self._residual(rotate_by(u, row)), self.train)
        return self.mlp3(u + self._residual(self.row_norm(look_up(self.row, row))), self.train)

    def _residual(self, x: Float[Array, " D"]) -> Float[Array, " D"]:
        return x + self.mlp2(x, self.train)


def look_up(table: nn.Embed, index: Int[Array, ""]) -> Float[Array, " d"]:
    """One row of the table. Indexed by a vector of length one: Linen rejects a scalar if the table has one row."""
    return table(index[None])[0]


def rotate_by(u: Float[Array, " D"], position: Int[Array, ""]) -> Float[Array, " D"]:
    """u rotated by a position, channel pairs (j, j + D/2) at RoFormer's frequencies."""
    half = u.shape[-1] // 2
    angles = position.astype(jnp.float32) * 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    first, second = jnp.split(u, 2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin])


class Head(nn.Module):
    """The linear read-out of one module: the transformed query -> (A [r, i], B [o, r]).

    For SFT it starts with zero weights and a bias that is a LoRA's own initialisation, so that the adapted model is
    the base model exactly and A has somewhere to go from. In L the bias is trained. In M and S one output serves A and
    B (and, in S, every row), so the start is a constant beside it; A's is divided by sqrt(2) and sqrt(2 r).
    """

    config: HypernetConfig
    module: LoraModule
    rank: int

    @nn.compact
    def __call__(self, h: Float[Array, "*q h"]) -> tuple[Float[Array, "r i"], Float[Array, "o r"]]:
        rank, d_in, d_out = self.rank, self.module.d_in, self.module.d_out
        widest = max(d_in, d_out)
        outputs = {"L": rank * (d_in + d_out), "M": rank * widest, "S": widest}[self.config.head]
        zero = self.config.init == "sft"
        init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (h.shape[-1], outputs))
        if self.config.head == "L":
            # B's weights are transposed, not the many B's that come out.
            kernel_b = kernel[:, rank * d_in :].reshape(-1, rank, d_out).swapaxes(1, 2).reshape(-1, d_out * rank)
            a, b = h @ kernel[:, : rank * d_in], h @ kernel_b
        elif self.config.head == "M":
            by_row = kernel.reshape(-1, rank, widest)  # only the columns that are kept are computed
            a = h[0] @ by_row[:, :, :d_in].reshape(-1, rank * d_in)
            b = h[1] @ by_row[:, :, :d_out].swapaxes(1, 2).reshape(-1, d_out * rank)
        else:
            a, b = h[0] @ kernel[:, :d_in], (h[1] @ kernel[:, :d_out]).T
        a, b = a.reshape(rank, d_in), b.reshape(d_out, rank)
        return (a + self._bias_a(), b + self._bias_b()) if zero else (a, b)

    def _bias_a(self) -> Float[Array, "r i"]:
        rank, d_in = self.rank, self.module.d_in
        bound = 1 / math.sqrt(d_in * {"L": 1, "M": 2, "S": 2 * rank}[self.config.head])

        def start(key: PRNGKeyArray) -> Float[Array, "r i"]:
            return jax.random.uniform(key, (rank, d_in), jnp.float32, -bound, bound)

        if self.config.head == "L":
            return self.param("bias_a", start)
        return self.variable("constants", "bias_a", lambda: start(self.make_rng("params"))).value

    def _bias_b(self) -> Float[Array, "o r"] | float:
        if self.config.head != "L":
            return 0.0
        return self.param("bias_b", nn.initializers.zeros, (self.rank, self.module.d_out)).T


class Hypernet(nn.Module):
    """One task's Condition -> one Adapter. `train` switches dropout on (rng "dropout")."""

    config: HypernetConfig
    spec: LoraSpec
    train: bool = False

    @nn.compact
    def __call__(self, condition: Condition) -> Adapter:
        z: Any = condition.z
        task = TaskEncoder(self.config.task, self.config.latent // 2, name="task")(z)
        query = Query(self.config, self.spec, self.train, name="query")
        modules, layers = jnp.arange(len(self.spec.modules)), jnp.arange(self.spec.num_layers)

        def all_layers(query: Query, module: Int[Array, ""]) -> Float[Array, "L ..."]:
            return lift(Query.__call__, query, task, module, layers, in_axes=(None, None, 0))

        hidden = lift(all_layers, query, modules)  # [M, L, ...]
        weights = {}
        for index, module in enumerate(self.spec.modules):
            head = Head(self.config, module, self.spec.rank, name=f"head_{module.name}")
            a, b = lift(Head.__call__, head, hidden[index])
            weights[module.name] = {"a": a, "b": b}
        adapter = Adapter(weights, self.spec)
        return adapter if self.config.offset == "none" else jax.tree.map(jnp.add, adapter, self._offset())

    def _offset(self) -> Adapter:
        """The adapter that is added to every output: weights under "params" (learned) or "constants" (frozen)."""
        if self.config.offset == "learned":
            return self.param("offset", init_adapter, self.spec)
        return self.variable("constants", "offset", lambda: init_adapter(self.make_rng("params"), self.spec)).value


def init(key: PRNGKeyArray, config: HypernetConfig, spec: LoraSpec) -> Variables:
    """The hypernetwork's variables; with init="sft" every adapter it writes leaves the base model as it is."""
    variables = _init(config, spec, key)
    return {name: variables[name] for name in ("params", "constants") if name in variables}


@partial(jax.jit, static_argnums=(0, 1))
def _init(config: HypernetConfig, spec: LoraSpec, key: PRNGKeyArray) -> Variables:
    net: Any = Hypernet(config, spec)
    return net.init(key, Condition(z=jnp.zeros(config.task.dim)))


def write_adapters(config: HypernetConfig, spec: LoraSpec, variables: Variables, conditions: Condition) -> Adapter:
    """Conditions of T tasks to adapters with leading axis T: one vmapped forward pass. Pure: jit, grad, vmap it."""
    net: Any = Hypernet(config, spec)  # to mypy, apply may return a pair
    return jax.vmap(lambda condition: net.apply(variables, condition))(conditions)
