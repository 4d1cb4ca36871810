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
from t2l_jax.schema import Rate, Width, check_fields

Variables = dict[str, Any]  # Linen collections: "params" are trained, "constants" are not; both are published


@struct.dataclass
class Condition:
    """What the hypernetwork is conditioned on for one task. Leading axes mean many tasks.

    A pytree, so that other inputs (a document) can be added; code that pads, places or batches conditions maps over
    its leaves. An unused field is None. With an instance (Hyperdecoders: Ivison and Peters, arXiv 2203.08304) the
    adapter is for that one example, and "task" means the example.
    """

    z: Float[Array | np.ndarray, "*T z"] | None = None  # task embedding of the description, float32
    task: Int[Array | np.ndarray, "*T"] | None = None  # index among the run's tasks, for trainees that read no text
    instance: Float[Array | np.ndarray, "*T z"] | None = None  # embedding of an example's input, float32
    text: Int[Array | np.ndarray, "*T S"] | None = None  # tokens of the description for an encoder in training, then -1

    @property
    def embedding(self) -> Float[Array, "*T e"]:
        """What the task encoder reads: the embedding of the description, of the instance, or one after the other."""
        return jnp.concatenate([part for part in (self.z, self.instance) if part is not None], axis=-1)


@dataclass(frozen=True)
class TaskEncoderConfig:
    """How the task embedding z is encoded.

    `linear`, the paper's, projects z, a sentence embedding or a one-hot task identity. The others are our own, with a
    codebook of learned vectors: `discrete` picks one with a straight-through gradient, `vq` picks the nearest (van den
    Oord et al., arXiv 1711.00937; its loss is sown into the collection "losses"), `softmax` mixes them.
    """

    dim: Width = 384
    """Width of what is read. Leave it out in a recipe: it follows from the text encoder."""
    kind: Literal["linear", "discrete", "vq", "softmax"] = "linear"
    """How z is encoded; see above."""
    codebook: Width = 64
    """Number of codebook vectors (not for linear)."""

    def __post_init__(self) -> None:
        check_fields(self, "hypernet.task")


@dataclass(frozen=True)
class HypernetConfig:
    """Sizes and variants of the hypernetwork (paper, section 3.2 and appendix)."""

    task: TaskEncoderConfig = TaskEncoderConfig()
    head: Literal["L", "M", "S"] = "L"
    """Architecture: one output of the head holds A and B (L), A or B (M), or one row of A or of B transposed (S)."""
    latent: Width = 128
    """Latent width D, a multiple of 4."""
    head_in: Width = 512
    """Input width of the head."""
    dropout: Rate = 0.05
    """Dropout in the hypernetwork's MLPs."""
    rotary_rows: bool = False
    """S only: encode the row by rotation instead of a row embedding."""
    init: Literal["sft", "reconstruction"] = "sft"
    """Initial weights of the head. sft: zero, so that an adapter begins as the head's bias; reconstruction: random."""
    head_bias: Literal["separate", "shared", "none"] = "separate"
    """Bias of the head. separate: one for A and one for B, which begin as a LoRA does (L: trained, M and S: fixed);
    shared: M and S add one trained bias to both A and B, as the original does; none: for standardised outputs."""
    standardised: bool = False
    """The head writes z-scores: each weight's mean over a library of LoRAs is added after scaling by its deviation."""
    linear_init: Literal["lecun", "uniform"] = "uniform"
    """Initial weights of the linear layers. uniform: weights and bias in ±1/sqrt(inputs), as in the original; lecun:
    normal of variance 1/inputs, bias zero."""
    embedding_init: Literal["narrow", "unit"] = "unit"
    """Initial embeddings of layer, module, side and row. unit: variance 1, as in the original; narrow: 1/width."""
    offset: Literal["none", "frozen", "learned"] = "none"
    """Adapter added to every output: none, frozen (from --offset-init or --init-from) or learned."""

    def __post_init__(self) -> None:
        check_fields(self, "hypernet")
        if self.latent % 4:
            raise UserError(f"hypernet.latent must be a multiple of 4, got {self.latent}")


STD_EPSILON = 1e-10  # added to the deviations of standardised outputs, as in the original


def uniform(fan_in: int) -> Any:
    """The initialiser U(±1/sqrt(fan_in)), PyTorch's for a linear layer's weights and for its bias."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(config: HypernetConfig, fan_in: int, width: int, **options: Any) -> nn.Dense:
    """A linear layer of `fan_in` inputs."""
    if config.linear_init == "uniform":
        options |= {"kernel_init": uniform(fan_in), "bias_init": uniform(fan_in)}
    return nn.Dense(width, **options)


def table(config: HypernetConfig, rows: int, width: int) -> nn.Embed:
    """A table of embeddings, each of which is normalised where it is read."""
    if config.embedding_init == "unit":
        return nn.Embed(rows, width, embedding_init=nn.initializers.normal(1.0))
    return nn.Embed(rows, width)


def lift(function: Any, module: nn.Module, *args: Any, in_axes: Any = 0) -> Any:
    """`jax.vmap` of function(module, *args) with shared parameters and independent dropout."""
    shared: dict[Any, Any] = {"params": None, "constants": None}
    lifted = nn.vmap(function, in_axes=in_axes, variable_axes=shared, split_rngs={"params": False, "dropout": True})
    return lifted(module, *args)


class TaskEncoder(nn.Module):
    """z -> the task part of the query."""

    config: HypernetConfig

    @nn.compact
    def __call__(self, z: Float[Array, " z"]) -> Float[Array, " e"]:
        kind, size, width = self.config.task.kind, self.config.task.codebook, self.config.latent // 2
        outputs = size if kind in ("discrete", "softmax") else width
        projected = linear(self.config, len(z), outputs, name="linear")(z)
        norm = nn.LayerNorm(epsilon=1e-5, name="norm")
        if kind == "linear":
            return norm(projected)
        codebook = self.param("codebook", nn.initializers.normal(1.0), (size, width))
        if kind == "vq":
            latent = projected
            nearest = codebook[jnp.argmin(jnp.sum((codebook - latent[None]) ** 2, axis=-1))]
            pull = jnp.mean((nearest - jax.lax.stop_gradient(latent)) ** 2)
            commit = jnp.mean((jax.lax.stop_gradient(nearest) - latent) ** 2)
            self.sow("losses", "vq", pull + 0.25 * commit)
            return norm(latent + jax.lax.stop_gradient(nearest - latent))
        weights = jax.nn.softmax(projected)
        if kind == "discrete":
            choice = jax.nn.one_hot(jnp.argmax(weights), size)
            weights = weights + jax.lax.stop_gradient(choice - weights)
        return norm(weights @ codebook)


class Mlp(nn.Module):
    """(LN or dropout,) Linear(D -> 4D), SiLU, dropout, Linear(4D -> width), SiLU (, dropout)."""

    config: HypernetConfig
    width: int
    first: Literal["norm", "drop"] = "norm"
    last_drop: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, " d"], train: bool) -> Float[Array, " w"]:
        hidden = 4 * self.config.latent
        drop = partial(nn.Dropout, self.config.dropout, deterministic=not train)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x) if self.first == "norm" else drop()(x)
        x = drop()(nn.silu(linear(self.config, len(x), hidden, name="up")(x)))
        x = nn.silu(linear(self.config, hidden, self.width, name="down")(x))
        return drop()(x) if self.last_drop else x


class Query(nn.Module):
    """One query (task, module, layer) to what the head reads: [head_in]; in M [2, head_in]; in S [2, r, head_in]."""

    config: HypernetConfig
    spec: LoraSpec
    train: bool

    def setup(self) -> None:
        config, spec, width = self.config, self.spec, self.config.latent
        self.depth = table(config, spec.num_layers, width // 4)
        self.depth_norm = nn.LayerNorm(epsilon=1e-5)
        self.type = table(config, len(spec.modules), width // 4)
        self.type_norm = nn.LayerNorm(epsilon=1e-5)
        self.mixer = Mlp(config, width, first="drop")
        self.mlp1 = Mlp(config, width)
        self.mlp2 = Mlp(config, width)
        self.mlp3 = Mlp(config, config.head_in, last_drop=False)
        if config.head != "L":
            self.side = table(config, 2 * len(spec.modules), width)
            self.side_norm = nn.LayerNorm(epsilon=1e-5)
        if config.head == "S" and not config.rotary_rows:
            self.row = table(config, spec.rank, width)
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

    With init "sft" the weights are zero, and every adapter begins as the bias. A separate bias is a LoRA's own
    initialisation, with which the adapted model is the base model exactly and A has somewhere to go from: trained in L,
    a constant in M and S, whose one output serves A and B. The shared bias is that output's own, the original's: M
    begins with B = Aᵀ, as far as the widths go, and S with equal rows besides. In M and S a bias is divided by sqrt(2)
    and sqrt(2 r).
    """

    config: HypernetConfig
    module: LoraModule
    rank: int

    @nn.compact
    def __call__(self, h: Float[Array, "*q h"]) -> tuple[Float[Array, "r i"], Float[Array, "o r"]]:
        rank, d_in, d_out, widest = self.rank, self.module.d_in, self.module.d_out, self._widest
        outputs = rank * (d_in + d_out) if self.config.head == "L" else self._rows * widest
        kernel = self.param("kernel", self._kernel_init(h.shape[-1]), (h.shape[-1], outputs))
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
        bias_a, bias_b = self._bias(h.shape[-1])
        return a.reshape(rank, d_in) + bias_a, b.reshape(d_out, rank) + bias_b

    @property
    def _widest(self) -> int:
        return max(self.module.d_in, self.module.d_out)

    @property
    def _rows(self) -> int:
        """How many rows of A or Bᵀ one output of M or S holds."""
        return 1 if self.config.head == "S" else self.rank

    def _kernel_init(self, fan_in: int) -> Any:
        if self.config.init == "sft":
            return nn.initializers.zeros
        return uniform(fan_in) if self.config.linear_init == "uniform" else nn.initializers.lecun_normal()

    def _bias(self, fan_in: int) -> tuple[Float[Array, "ra i"] | float, Float[Array, "o rb"] | float]:
        """The biases of A and B; in S the shared one has a single row."""
        kind, head, module = self.config.head_bias, self.config.head, self.module
        if kind == "none":
            return 0.0, 0.0
        lora = uniform(module.d_in * {"L": 1, "M": 2, "S": 2 * self.rank}[head])
        if kind == "shared" and head != "L":
            init = lora if self.config.init == "sft" else uniform(fan_in)
            bias = self.param("bias", init, (self._rows, self._widest))
            return bias[:, : module.d_in], bias[:, : module.d_out].T
        shape = (self.rank, module.d_in)
        if head != "L":
            return self.variable("constants", "bias_a", lambda: lora(self.make_rng("params"), shape)).value, 0.0
        bias_b = self.param("bias_b", nn.initializers.zeros, (self.rank, module.d_out))
        return self.param("bias_a", lora, shape), bias_b.T


class Hypernet(nn.Module):
    """One task's Condition -> one Adapter. `train` switches dropout on (rng "dropout")."""

    config: HypernetConfig
    spec: LoraSpec
    train: bool = False

    @nn.compact
    def __call__(self, condition: Condition) -> Adapter:
        task = TaskEncoder(self.config, name="task")(condition.embedding)
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
        if self.config.standardised:
            adapter = jax.tree.map(
                lambda score, std, mean: score * (std + STD_EPSILON) + mean, adapter, *self._library()
            )
        return adapter if self.config.offset == "none" else jax.tree.map(jnp.add, adapter, self._offset())

    def _library(self) -> tuple[Adapter, Adapter]:
        """Deviation and mean of each weight over a library of LoRAs; 1 and 0 until they are set."""
        fresh = init_adapter(jax.random.key(0), self.spec)
        std = self.variable("constants", "std", lambda: jax.tree.map(jnp.ones_like, fresh))
        mean = self.variable("constants", "mean", lambda: jax.tree.map(jnp.zeros_like, fresh))
        return std.value, mean.value

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
