"""The paper's network written in PyTorch, one query at a time, and tiny hypernetworks to hold against it."""

import math
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.functional import embedding, layer_norm, silu

from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig, Variables, init
from t2l_jax.lora import Adapter, LoraModule, LoraSpec

MODULES = (LoraModule("q_proj", 12, 20), LoraModule("v_proj", 12, 8), LoraModule("down_proj", 20, 12))
SPEC = LoraSpec(MODULES, num_layers=3, rank=4)
TINY = HypernetConfig(TaskEncoderConfig(dim=10, codebook=6), latent=16, head_in=24)
HEADS = {
    "L": replace(TINY, head="L"),
    "M": replace(TINY, head="M"),
    "S": replace(TINY, head="S"),
    "S-rotary": replace(TINY, head="S", rotary_rows=True),
}


def with_task(config: HypernetConfig, **changes) -> HypernetConfig:
    return replace(config, task=replace(config.task, **changes))


@cache
def random_variables(config: HypernetConfig) -> Variables:
    """Weights without the zeros and ones that initialisation leaves, behind which mistakes could hide."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config, SPEC))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def embeddings(count: int, dim: int = TINY.task.dim) -> np.ndarray:
    z = np.random.default_rng(2).standard_normal((count, dim), np.float32)
    return z / np.linalg.norm(z, axis=-1, keepdims=True) * math.sqrt(dim)


def assert_close(found: Adapter, expected: dict) -> None:
    assert found.weights.keys() == expected.keys()
    for name, sides in expected.items():
        for side, value in sides.items():
            np.testing.assert_allclose(found.weights[name][side], value, atol=2e-5, err_msg=f"{name} {side}")


def linear(p: dict, x: torch.Tensor) -> torch.Tensor:
    return x @ p["kernel"] + p["bias"]


def norm(p: dict, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps=1e-5)


def mlp(p: dict, x: torch.Tensor) -> torch.Tensor:
    return silu(linear(p["down"], silu(linear(p["up"], norm(p["norm"], x)))))


def look_up(table: dict, normalisation: dict, index: int) -> torch.Tensor:
    return norm(normalisation, embedding(torch.tensor(index), table["embedding"]))


def torch_task(config: TaskEncoderConfig, p: dict, z: torch.Tensor) -> torch.Tensor:
    """What every kind of task encoder lets through in the forward pass."""
    read = linear(p["linear"], z)
    if config.kind == "linear":
        return norm(p["norm"], read)
    if config.kind == "vq":
        return norm(p["norm"], p["codebook"][torch.cdist(read[None], p["codebook"])[0].argmin()])
    if config.kind == "discrete":
        return norm(p["norm"], p["codebook"][read.argmax()])
    return norm(p["norm"], read.softmax(-1) @ p["codebook"])


def turned(u: torch.Tensor, position: int) -> torch.Tensor:
    """Every channel pair as a complex number, multiplied by exp(i position frequency)."""
    half = len(u) // 2
    frequency = torch.tensor([10_000.0 ** (-j / half) for j in range(half)])
    product = torch.complex(u[:half], u[half:]) * torch.polar(torch.ones(half), position * frequency)
    return torch.cat([product.real, product.imag])


def torch_heads(config: HypernetConfig, p: dict, x: torch.Tensor, m: int) -> torch.Tensor | list:
    """What the head reads: one vector (L), one per side (M), or one per side and row (S)."""
    if config.head == "L":
        return mlp(p["mlp3"], x + mlp(p["mlp2"], x))
    found = []
    for side in range(2):
        y = x + look_up(p["side"], p["side_norm"], 2 * m + side)
        u = y + mlp(p["mlp2"], y)
        if config.head == "M":
            found.append(mlp(p["mlp3"], u))
            continue
        rows = []
        for row in range(SPEC.rank):
            if config.rotary_rows:
                w = turned(u, row)
                rows.append(mlp(p["mlp3"], w + mlp(p["mlp2"], w)))
            else:
                w = look_up(p["row"], p["row_norm"], row)
                rows.append(mlp(p["mlp3"], u + w + mlp(p["mlp2"], w)))
        found.append(rows)
    return found


def torch_read_out(config: HypernetConfig, kernel: torch.Tensor, h, module: LoraModule) -> tuple:
    """A [r, i] and B [o, r] without the head's bias."""
    rank, d_in, d_out = SPEC.rank, module.d_in, module.d_out
    if config.head == "L":
        out = h @ kernel
        return out[: rank * d_in].view(rank, d_in), out[rank * d_in :].view(rank, d_out).T
    if config.head == "M":
        a, b = ((side @ kernel).view(rank, max(d_in, d_out)) for side in h)
    else:
        a, b = (torch.stack([row @ kernel for row in side]) for side in h)
    return a[:, :d_in], b[:, :d_out].T


def torch_adapter(config: HypernetConfig, variables: Variables, z: np.ndarray | jax.Array) -> dict:
    tree = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), variables)
    params, constants = tree["params"], tree.get("constants", {})
    p = params["query"]
    task = torch_task(config.task, params["task"], torch.from_numpy(np.array(z)))
    weights = {}
    for m, module in enumerate(SPEC.modules):
        head = params[f"head_{module.name}"]
        sides = {"a": [], "b": []}
        for layer in range(SPEC.num_layers):
            query = torch.cat(
                [task, look_up(p["depth"], p["depth_norm"], layer), look_up(p["type"], p["type_norm"], m)]
            )
            x = silu(linear(p["mixer"]["down"], silu(linear(p["mixer"]["up"], query))))
            x = x + mlp(p["mlp1"], x)
            a, b = torch_read_out(config, head["kernel"], torch_heads(config, p, x, m), module)
            if config.head_bias == "shared" and config.head != "L":
                a = a + head["bias"][:, : module.d_in]  # one row for all, in S
                b = b + head["bias"][:, : module.d_out].T
            elif config.head_bias != "none":
                a = a + (head["bias_a"] if config.head == "L" else constants[f"head_{module.name}"]["bias_a"])
                b = b + (head["bias_b"].T if config.head == "L" else 0)
            if config.standardised:
                std, mean = (constants[name].weights[module.name] for name in ("std", "mean"))
                a, b = a * std["a"][layer] + mean["a"][layer], b * std["b"][layer] + mean["b"][layer]
            if config.offset != "none":
                offset = (params if config.offset == "learned" else constants)["offset"].weights[module.name]
                a, b = a + offset["a"][layer], b + offset["b"][layer]
            sides["a"].append(a)
            sides["b"].append(b)
        weights[module.name] = {side: torch.stack(found).numpy() for side, found in sides.items()}
    return weights
