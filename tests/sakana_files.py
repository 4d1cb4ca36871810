"""Folders in the layout of the original Text-to-LoRA with random weights, and the adapters that its graph gives.

The graph is written from its description, on the state dict's own keys and in double precision; it knows nothing of
ours.
"""

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from t2l_jax.hypernet import Condition
from t2l_jax.model import Model

BASE = "org/gemma-2-2b-it"  # one whose chat template is known
LAYERS, RANK, LATENT, HEAD_IN, WIDTH_Z = 2, 2, 8, 6, 5
WIDTHS = {"q_proj": (8, 8), "v_proj": (8, 4), "up_proj": (8, 12), "down_proj": (12, 8)}
ORDER = ("v_proj", "down_proj", "q_proj")  # of a set: not that of PROJECTIONS
TASKS = [f"lol_{index:03d}" for index in range(WIDTH_Z)]
State = OrderedDict[str, torch.Tensor]

ARGS: dict[str, Any] = {
    "exp_setup": "hyper_lora", "training_task": "sft", "model_dir": BASE, "target_modules": sorted(ORDER),
    "emb_model": "Alibaba-NLP/gte-large-en-v1.5", "use_one_hot_task_emb": False, "train_ds_names": [*TASKS, "lol_999"],
    "n_train_ds": WIDTH_Z, "hypernet_latent_size": LATENT, "head_in_size": HEAD_IN, "encoder_type": "linear",
    "shared_AB_head": False, "autoreg_gen": False, "learnable_pos_emb": False, "pred_z_score": True,
    "factorized": False, "delta_w_scaling": 10000, "mt_lora_path": None, "learnable_AB_offset": False,
    "head_use_bias": False, "save_freq": 10**100, "lr": 2.5e-5, "notes": None,
}  # fmt: skip
_RECON = {"training_task": "recon", "factorized": True}
_SMALL = {"shared_AB_head": True, "autoreg_gen": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "L": {},
    "M": {"shared_AB_head": True},
    "S": {**_SMALL, "learnable_pos_emb": True},
    "S, rotary": _SMALL,
    "L, offset": {"mt_lora_path": "runs/mt"},
    "S, offset": {**_SMALL, "learnable_pos_emb": True, "mt_lora_path": "runs/mt", "learnable_AB_offset": True},
    "L, z-scores": _RECON,
    "M, z-scores": {**_RECON, "shared_AB_head": True},
    "S, reconstruction": {**_RECON, **_SMALL, "learnable_pos_emb": True, "pred_z_score": False},
    "L, delta W": {"training_task": "recon", "pred_z_score": False},
    "M, delta W": {"training_task": "recon", "pred_z_score": False, "shared_AB_head": True},
    "L, one-hot": {**_RECON, "pred_z_score": False, "use_one_hot_task_emb": True},
    "L, flag vq": {"encoder_type": "vq"},
}
ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "r": RANK, "lora_alpha": 4,
    "use_rslora": True, "target_modules": ["q_proj", "down_proj", "v_proj"], "bias": "none", "lora_dropout": 0.05,
    "fan_in_fan_out": False, "layers_to_transform": None, "loftq_config": {}, "rank_pattern": {}, "use_dora": False,
}  # fmt: skip


def args_of(variant: str, **changes: Any) -> dict[str, Any]:
    return {**ARGS, **VARIANTS[variant], **changes}


def random_state(args: dict[str, Any], order: tuple[str, ...] = ORDER, seed: int = 0) -> State:
    """A state dict with the keys of the variant, in the original's order."""
    generator = torch.Generator().manual_seed(seed)
    recon, scored = args["training_task"] == "recon", args["pred_z_score"]
    shapes: dict[str, tuple[int, ...]] = {}
    for kind in ("AB_offset", "mean_recon_target", "std_recon_target"):
        shapes |= {f"{kind}.A.{name}": (LAYERS, RANK, WIDTHS[name][0]) for name in sorted(order)}
        shapes |= {f"{kind}.B.{name}": (LAYERS, WIDTHS[name][1], RANK) for name in sorted(order)}
    zero = {key for key in shapes if key.startswith("AB_offset") and args["mt_lora_path"] is None}
    zero |= {key for key in shapes if "recon" in key and not (recon and args["factorized"] and scored)}

    def add(key: str, *shape: int) -> None:
        shapes[f"{key}.weight"] = shape
        shapes[f"{key}.bias"] = shape[:1]

    add("task_encoder.mlp.0", LATENT // 2, WIDTH_Z)
    add("task_encoder.mlp.1", LATENT // 2)
    for key, rows in (("layer_depth_encoder", LAYERS), ("layer_type_encoder", len(order))):
        shapes[f"{key}.0.weight"] = (rows, LATENT // 4)
        add(f"{key}.1", LATENT // 4)
    add("mixer.1", 4 * LATENT, LATENT)
    add("mixer.4", LATENT, 4 * LATENT)
    for key, width in (("mlp1.mlp", LATENT), ("mlp2.mlp", LATENT), ("mlp3", HEAD_IN)):
        add(f"{key}.0", LATENT)
        add(f"{key}.1", 4 * LATENT, LATENT)
        add(f"{key}.4", width, 4 * LATENT)
    if args["learnable_pos_emb"]:
        shapes["pos_emb.0.weight"] = (RANK, LATENT)
        add("pos_emb.1", LATENT)
    if args["shared_AB_head"]:
        shapes |= {f"out_emb.{name}.{side}": (LATENT,) for name in order for side in "AB"}
        add("out_emb_norm", LATENT)
    biased = not scored if recon else args["mt_lora_path"] is None
    for name in order:
        width = max(WIDTHS[name]) if args["shared_AB_head"] else sum(WIDTHS[name])
        add(f"heads.{name}", width if args["autoreg_gen"] else RANK * width, HEAD_IN)
        if not biased:
            del shapes[f"heads.{name}.bias"]
    made = ((key, torch.randn(shape, generator=generator) / 2) for key, shape in shapes.items())
    return OrderedDict((key, torch.zeros_like(value) if key in zero else value) for key, value in made)


def save(folder: Path, args: dict[str, Any], state: Any, **adapter: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(state, folder / "hypermod.pt")
    (folder / "args.yaml").write_text(yaml.safe_dump(args))
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **adapter}))
    return folder


class Graph:
    """The original's forward pass of a state dict whose modules stand in `order`."""

    def __init__(self, args: dict[str, Any], state: State, order: tuple[str, ...] = ORDER) -> None:
        self.args, self.order = args, order
        self.state = {key: value.double() for key, value in state.items()}

    def adapters(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """A.<module> [n, L, r, in] and B.<module> [n, L, out, r] of embeddings [n, z]."""
        found: dict[str, torch.Tensor] = {}
        for index, name in enumerate(self.order):
            pairs = [[self.pair(row, layer, index, name) for layer in range(LAYERS)] for row in z.double()]
            for side, place in (("A", 0), ("B", 1)):
                stacked = torch.stack([torch.stack([pair[place] for pair in layers]) for layers in pairs])
                found[f"{side}.{name}"] = self.after(stacked, f"{side}.{name}")
        return found

    def after(self, out: torch.Tensor, key: str) -> torch.Tensor:
        state, args = self.state, self.args
        if args["training_task"] == "sft":
            return out + state[f"AB_offset.{key}"]
        if not args["factorized"]:
            return out / math.sqrt(args["delta_w_scaling"])
        if args["pred_z_score"]:
            out = out * (state[f"std_recon_target.{key}"] + 1e-10) + state[f"mean_recon_target.{key}"]
        return out + state[f"AB_offset.{key}"]

    def pair(self, z: torch.Tensor, layer: int, index: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        d_in, d_out = WIDTHS[name]
        depth = self.norm(self.state["layer_depth_encoder.0.weight"][layer], "layer_depth_encoder.1")
        kind = self.norm(self.state["layer_type_encoder.0.weight"][index], "layer_type_encoder.1")
        task = self.norm(self.linear(z, "task_encoder.mlp.0"), "task_encoder.mlp.1")
        x = self.two(torch.cat([task, depth, kind]), "mixer")
        x = x + self.mlp(x, "mlp1.mlp")
        head = f"heads.{name}"
        if not self.args["shared_AB_head"]:
            out = self.linear(self.mlp(x + self.mlp(x, "mlp2.mlp"), "mlp3"), head)
            return out[: RANK * d_in].reshape(RANK, d_in), out[RANK * d_in :].reshape(RANK, d_out).T
        a, b = (self.side(x, f"out_emb.{name}.{side}", head) for side in "AB")
        return a[:, :d_in], b[:, :d_out].T

    def side(self, x: torch.Tensor, embedding: str, head: str) -> torch.Tensor:
        y = x + self.norm(self.state[embedding], "out_emb_norm")
        if not self.args["autoreg_gen"]:
            return self.linear(self.mlp(y + self.mlp(y, "mlp2.mlp"), "mlp3"), head).reshape(RANK, -1)
        y, rows = y + self.mlp(y, "mlp2.mlp"), []
        for row in range(RANK):
            if self.args["learnable_pos_emb"]:
                p = self.norm(self.state["pos_emb.0.weight"][row], "pos_emb.1")
                u = y + p + self.mlp(p, "mlp2.mlp")
            else:
                turns = row * 10_000.0 ** (-torch.arange(LATENT // 2, dtype=torch.float64) / (LATENT // 2))
                turned = torch.polar(torch.ones_like(turns), turns) * torch.complex(y[: LATENT // 2], y[LATENT // 2 :])
                u = torch.cat([turned.real, turned.imag])
                u = u + self.mlp(u, "mlp2.mlp")
            rows.append(self.linear(self.mlp(u, "mlp3"), head))
        return torch.stack(rows)

    def mlp(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return self.two(self.norm(x, f"{key}.0"), key)

    def two(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.silu(self.linear(F.silu(self.linear(x, f"{key}.1")), f"{key}.4"))

    def linear(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.linear(x, self.state[f"{key}.weight"], self.state.get(f"{key}.bias"))

    def norm(self, x: torch.Tensor, key: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape, self.state[f"{key}.weight"], self.state[f"{key}.bias"])


def assert_same_adapters(
    model: Model, args: dict[str, Any], state: State, order: tuple[str, ...] = ORDER, tolerance: float = 1e-5
) -> None:
    """The adapters of a folder of ours, next to those of the original's graph."""
    z = torch.eye(WIDTH_Z) if args["use_one_hot_task_emb"] else torch.randn(3, WIDTH_Z)
    expected = {key: value.numpy() for key, value in Graph(args, state, order).adapters(z).items()}
    largest = max(np.abs(value).max() for value in expected.values())
    written = model.adapters(Condition(z=z.numpy())).weights
    assert {f"{side}.{name}" for name in written for side in "AB"} == set(expected)
    for key, value in expected.items():
        side, name = key.split(".")
        np.testing.assert_allclose(written[name][side.lower()], value, atol=tolerance * largest, rtol=0)
