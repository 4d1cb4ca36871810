"""Published hypernetworks of ours as checkpoints of the original Text-to-LoRA, whose layout `sakana.py` describes."""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_folder, read_json, refuse_existing
from t2l_jax.io.peft import CONFIG_FILE
from t2l_jax.io.published import (
    IDENTITIES_FILE,
    MODEL_FOLDER,
    WORDS,
    Identities,
    ModelConfig,
    load_model,
    model_folder,
    tensor_shapes,
    tensors_of,
)
from t2l_jax.io.sakana import ARGS_FILE, ENCODERS, LAST_TOKEN, WEIGHTS_FILE
from t2l_jax.io.sakana_layout import layout, to_theirs
from t2l_jax.schema import checked


def export_sakana(location: str | Path, out: Path) -> ModelConfig:
    """Write a published hypernetwork as a folder of the original's, in float32.

    `location` is a published model's, or the run folder of one that reads one-hot task identities. Raises UserError for
    a model that the original's layout cannot hold, and if `out` exists.
    """
    refuse_existing(out)
    run = Path(location)
    tasks: tuple[str, ...] = ()
    if (run / IDENTITIES_FILE).is_file():
        tasks = checked(Identities, read_json(run / IDENTITIES_FILE), str(run / IDENTITIES_FILE)).tasks
        folder = run / MODEL_FOLDER
    else:
        folder = model_folder(location)
    published, variables = load_model(folder)
    config, tensors = _folded(published, {name: np.asarray(leaf) for name, leaf in tensors_of(variables).items()})
    options = _args(config, tasks, str(folder))
    theirs = to_theirs(layout(config.hypernet, config.lora, tensor_shapes(config)), tensors)
    import torch  # here, since importing it takes seconds

    state = OrderedDict((key, torch.tensor(tensor)) for key, tensor in theirs.items())
    with atomic_folder(out) as partial:
        torch.save(state, partial / WEIGHTS_FILE)
        (partial / ARGS_FILE).write_text(yaml.safe_dump(options))
        (partial / CONFIG_FILE).write_text(json.dumps(_adapter_config(config), indent=2) + "\n")
    return published


def _folded(config: ModelConfig, tensors: dict[str, np.ndarray]) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Move the constant that M and S add to A into the offset: the original's head bias is for A and B alike."""
    net = config.hypernet
    if net.head == "L" or net.head_bias != "separate" or net.standardised:
        return config, tensors
    offset = "frozen" if net.offset == "none" else net.offset
    group, folded = "params" if offset == "learned" else "constants", dict(tensors)
    for name, pair in config.lora.shapes().items():
        bias = folded.pop(f"constants/head_{name}/bias_a")
        for side, shape in pair.items():
            key = f"{group}/offset/{name}/{side}"
            folded[key] = tensors.get(key, np.zeros(shape, np.float32)) + (bias[None] if side == "a" else 0)
    return replace(config, hypernet=replace(net, head_bias="none", offset=offset)), folded


def _args(config: ModelConfig, tasks: tuple[str, ...], where: str) -> dict[str, Any]:
    """The original's training flags that say what its checkpoint is."""
    net = config.hypernet
    _refuse_forms(config, tasks, where)
    has_bias = net.head_bias != "none"
    # Of the two tasks only reconstruction has z-scores, and without them both its heads have a bias.
    recon = net.standardised or (has_bias and net.init == "reconstruction")
    return {
        "exp_setup": "hyper_lora",
        "training_task": "recon" if recon else "sft",
        "model_dir": config.base_name,
        "emb_model": _emb_model(config, where),
        "use_one_hot_task_emb": config.reads == "identity",
        "train_ds_names": list(tasks),
        "n_train_ds": len(tasks) or None,
        "target_modules": list(config.lora.names),
        "hypernet_latent_size": net.latent,
        "head_in_size": net.head_in,
        "encoder_type": "linear",
        "shared_AB_head": net.head != "L",
        "autoreg_gen": net.head == "S",
        "learnable_pos_emb": net.head == "S" and not net.rotary_rows,
        "head_use_bias": has_bias,
        "pred_z_score": net.standardised or not recon,
        "factorized": recon,
        "delta_w_scaling": 10_000,
        # A path, read by nobody, means that the heads have no bias.
        "mt_lora_path": None if has_bias or recon else "unknown",
        "learnable_AB_offset": net.offset == "learned",
    }


def _refuse_forms(config: ModelConfig, tasks: tuple[str, ...], where: str) -> None:
    """Raise UserError for the first thing that the original's layout has no place for."""
    net = config.hypernet
    if config.reads_instances:
        raise UserError(f"{where}: reads {WORDS[config.reads]}: the original reads no instances")
    if net.task.kind != "linear":
        raise UserError(f"{where}: hypernet.task.kind is {net.task.kind}: the original reads its linear encoder only")
    if net.standardised and net.head_bias != "none":
        raise UserError(
            f"{where}: hypernet.standardised with a head bias: the original has one of them (head_bias none)"
        )
    if config.encoder_adapter:
        raise UserError(f"{where}: its text encoder has an adapter, which the original cannot read")
    if config.reads == "identity" and len(tasks) != net.task.dim:
        raise UserError(
            f"{where}: reads one-hot task identities: give its run folder, whose {IDENTITIES_FILE} names them"
        )


def _emb_model(config: ModelConfig, where: str) -> str | None:
    """The original's name of the text encoder; None for the base model itself, and for one-hot identities."""
    encoder = config.encoder
    if encoder is None or encoder == LAST_TOKEN + config.base:
        return None
    if encoder.removeprefix("hf:") in ENCODERS:
        return encoder.removeprefix("hf:")
    raise UserError(
        f"{where}: its text encoder is {encoder}; the original reads {', '.join(ENCODERS)} or the base model itself"
    )


def _adapter_config(config: ModelConfig) -> dict[str, Any]:
    alpha = config.lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_name,
        "target_modules": list(config.lora.names),
        "r": config.lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "use_rslora": config.lora.rslora,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": False,
        "init_lora_weights": True,
    }
