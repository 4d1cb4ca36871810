"""The paper in one file: a hypernetwork that writes a LoRA adapter from a task embedding.

Charakorn, Cetin, Tang, Lange, "Text-to-LoRA: Instant Transformer Adaption", ICML 2025, arXiv 2506.06105, section 3.

Axes: *T tasks (none, or any leading axes), D latent width, L layers, M modules (adapted projections), r rank, i/o
input/output width of a projection.

A query is one task, one module and one layer; in S also one side and one row of A or B. The network is what `jax.vmap`
makes of one query. It is written with queries as leading array axes, so that each layer is one product of matrices for
all queries, and each head one for A and one for B, to which XLA joins the addition of the bias.

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


class TaskEncoder(nn.Module):
    """z -> the task part of the query."""

    config: HypernetConfig

    @nn.compact
    def __call__(self, z: Float[Array, "*T z"]) -> Float[Array, "*T e"]:
        kind, size, width = self.config.task.kind, self.config.task.codebook, self.config.latent // 2
        outputs = size if kind in ("discrete", "softmax") else width
        projected = linear(self.config, z.shape[-1], outputs, name="linear")(z)
        norm = nn.LayerNorm(epsilon=1e-5, name="norm")
        if kind == "linear":
            return norm(projected)
        codebook = self.param("codebook", nn.initializers.normal(1.0), (size, width))
        if kind == "vq":
            latent = projected
            distances = jnp.sum((jnp.expand_dims(codebook, range(z.ndim - 1)) - latent[..., None, :]) ** 2, axis=-1)
            nearest = codebook[jnp.argmin(distances, axis=-1)]
            pull = jnp.mean((nearest - jax.lax.stop_gradient(latent)) ** 2)
            commit = jnp.mean((jax.lax.stop_gradient(nearest) - latent) ** 2)
            self.sow("losses", "vq", pull + 0.25 * commit)
            return norm(latent + jax.lax.stop_gradient(nearest - latent))
        weights = jax.nn.softmax(projected)
        if kind == "discrete":
            choice = jax.nn.one_hot(jnp.argmax(weights, axis=-1), size)
            weights = weights + jax.lax.stop_gradient(choice - weights)
        return norm(weights @ codebook)


class Mlp(nn.Module):
    """(LN or dropout,) Linear(D -> 4D), SiLU, dropout, Linear(4D -> width), SiLU (, dropout)."""

    config: HypernetConfig
    width: int
    first: Literal["norm", "drop"] = "norm"
    last_drop: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*q d"], train: bool) -> Float[Array, "*q w"]:
        hidden = 4 * self.config.latent
        drop = partial(nn.Dropout, self.config.dropout, deterministic=not train)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x) if self.first == "norm" else drop()(x)
        x = drop()(nn.silu(linear(self.config, x.shape[-1], hidden, name="up")(x)))
        x = nn.silu(linear(self.config, hidden, self.width, name="down")(x))
        return drop()(x) if self.last_drop else x


class Query(nn.Module):
    """The task part of the query to what the heads read, for each module and, in M and S, for A and for B."""

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

    def __call__(self, task: Float[Array, "*T e"]) -> list[tuple[Float[Array, "..."], Float[Array, "..."]]]:
        """For each module a pair [*T, L, head_in], in L twice the same; in S [*T, L, r, head_in]."""
        x = self._trunk(task)
        if self.config.head != "L":
            sides = self.side_norm(self.side.embedding).reshape(len(x), 2, *(1,) * task.ndim, -1)
            queries = len(x), 2, *x.shape[1:-1]
            x = to_queries(x[:, None], queries) + to_queries(sides, queries)
        x = self._residual(x)
        if self.config.head == "S":  # a side at a time: all r times as many queries at once take a quarter longer
            return [(self._rows(for_a), self._rows(for_b)) for for_a, for_b in x]
        h = self.mlp3(x, self.train)
        return [(one, one) if self.config.head == "L" else (one[0], one[1]) for one in h]

    def _trunk(self, task: Float[Array, "*T e"]) -> Float[Array, "M *T L D"]:
        queries = len(self.spec.modules), *task.shape[:-1], self.spec.num_layers
        depth, kind = self.depth_norm(self.depth.embedding), self.type_norm(self.type.embedding)
        parts = task[..., None, :], depth, kind.reshape(len(kind), *(1,) * task.ndim, -1)
        x = self.mixer(jnp.concatenate([to_queries(part, queries) for part in parts], axis=-1), self.train)
        return x + self.mlp1(x, self.train)

    def _rows(self, x: Float[Array, "*q D"]) -> Float[Array, "*q r h"]:
        """What the head reads for each row of A, or of B transposed (S)."""
        queries = *x.shape[:-1], self.spec.rank
        x = to_queries(x[..., None, :], queries)
        if self.config.rotary_rows:
            return self.mlp3(self._residual(rotate_by_row(x)), self.train)
        rows = self.row_norm(self.row.embedding)
        # Rows are the same for all queries; while training, dropout is drawn for each query.
        rows = self._residual(to_queries(rows, queries) if self.train else rows)
        return self.mlp3(x + to_queries(rows, queries), self.train)

    def _residual(self, x: Float[Array, "*q D"]) -> Float[Array, "*q D"]:
        return x + self.mlp2(x, self.train)


def to_queries(x: Float[Array, "*some d"], queries: tuple[int, ...]) -> Float[Array, "*q d"]:
    """x repeated along the axes of queries that it lacks."""
    return jnp.broadcast_to(x, (*queries, x.shape[-1]))


def rotate_by_row(u: Float[Array, "*q r D"]) -> Float[Array, "*q r D"]:
    """u rotated by the index of the row, channel pairs (j, j + D/2) at RoFormer's frequencies."""
    rows, half = u.shape[-2], u.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.outer(jnp.arange(rows, dtype=jnp.float32), frequencies)
    cos, sin = (to_queries(part, u.shape[:-1]) for part in (jnp.cos(angles), jnp.sin(angles)))
    first, second = jnp.split(u, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Head(nn.Module):
    """The linear read-out of one module: the transformed queries -> (A [*T, L, r, i], B [*T, L, o, r]).

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
    def __call__(
        self, for_a: Float[Array, "*queries h"], for_b: Float[Array, "*queries h"]
    ) -> tuple[Float[Array, "*T L r i"], Float[Array, "*T L o r"]]:
        rank, d_in, d_out, widest = self.rank, self.module.d_in, self.module.d_out, self._widest
        fan_in = for_a.shape[-1]
        outputs = rank * (d_in + d_out) if self.config.head == "L" else self._rows * widest
        kernel = self.param("kernel", self._kernel_init(fan_in), (fan_in, outputs))
        bias_a, bias_b = self._bias(fan_in)
        if self.config.head == "S":
            a, b = project(for_a, kernel[:, :d_in]), project(for_b, kernel[:, :d_out]).swapaxes(-1, -2)
            return plus(a, bias_a), plus(b, bias_b)
        # Only the columns that are kept are computed, and B's weights are transposed, not the many B's that come out.
        if self.config.head == "L":
            kernel_a, kernel_b = (part.reshape(fan_in, rank, -1) for part in jnp.split(kernel, [rank * d_in], axis=1))
        else:
            by_row = kernel.reshape(fan_in, rank, widest)
            kernel_a, kernel_b = by_row[:, :, :d_in], by_row[:, :, :d_out]
        return project(for_a, kernel_a, bias_a), project(for_b, kernel_b.swapaxes(1, 2), bias_b)

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

    def _bias(self, fan_in: int) -> tuple[Float[Array, "ra i"] | None, Float[Array, "o rb"] | None]:
        """The biases of A and B; in S the shared one has a single row."""
        kind, head, module = self.config.head_bias, self.config.head, self.module
        if kind == "none":
            return None, None
        lora = uniform(module.d_in * {"L": 1, "M": 2, "S": 2 * self.rank}[head])
        if kind == "shared" and head != "L":
            init = lora if self.config.init == "sft" else uniform(fan_in)
            bias = self.param("bias", init, (self._rows, self._widest))
            return bias[:, : module.d_in], bias[:, : module.d_out].T
        shape = (self.rank, module.d_in)
        if head != "L":
            return self.variable("constants", "bias_a", lambda: lora(self.make_rng("params"), shape)).value, None
        bias_b = self.param("bias_b", nn.initializers.zeros, (self.rank, module.d_out))
        return self.param("bias_a", lora, shape), bias_b.T


def project(
    h: Float[Array, "*q h"], kernel: Float[Array, "h ..."], bias: Float[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """h @ kernel + bias as one product of matrices: [*q, h] and [h, ...] give [*q, ...]."""
    fan_in, *shape = kernel.shape
    out = h.reshape(-1, fan_in) @ kernel.reshape(fan_in, -1)
    if bias is not None:
        out = out + bias.reshape(1, -1)
    return out.reshape(*h.shape[:-1], *shape)


def plus(x: Float[Array, "..."], y: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """x + y, where y may lack leading axes of x; None is zero."""
    return x if y is None else x + jnp.broadcast_to(y, x.shape)


class Hypernet(nn.Module):
    """Condition -> Adapter, with the condition's leading axes. `train` switches dropout on (rng "dropout")."""

    config: HypernetConfig
    spec: LoraSpec
    train: bool = False

    @nn.compact
    def __call__(self, condition: Condition) -> Adapter:
        task = TaskEncoder(self.config, name="task")(condition.embedding)
        hidden = Query(self.config, self.spec, self.train, name="query")(task)
        weights = {}
        for module, pair in zip(self.spec.modules, hidden, strict=True):
            a, b = Head(self.config, module, self.spec.rank, name=f"head_{module.name}")(*pair)
            weights[module.name] = {"a": a, "b": b}
        adapter = Adapter(weights, self.spec)
        if self.config.standardised:
            adapter = jax.tree.map(
                lambda score, std, mean: plus(score * jnp.broadcast_to(std + STD_EPSILON, score.shape), mean),
                adapter,
                *self._library(),
            )
        return adapter if self.config.offset == "none" else jax.tree.map(plus, adapter, self._offset())

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
    """Conditions of T tasks to adapters with leading axis T: one forward pass. Pure: jit, grad, vmap it."""
    net: Any = Hypernet(config, spec)  # to mypy, apply may return a pair
    return net.apply(variables, conditions)
