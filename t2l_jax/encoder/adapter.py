"""The LoRA adapter of a text encoder, added to the weights of a PyTorch model."""

import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from t2l_jax.errors import UserError
from t2l_jax.io.files import os_errors_explained, read_json
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE, check_options, setting

_BEFORE, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def add_adapter(model: Any, folder: Path) -> None:
    """Add to the weights of a PyTorch model what the adapter of a folder changes: W += scale * B A.

    Raises UserError if a file is missing or damaged, an option is not supported, or a tensor fits no linear layer.
    """
    import torch  # here, since importing it takes seconds
    from safetensors.torch import load

    options = read_json(folder / CONFIG_FILE)
    check_options(options, folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    with os_errors_explained(path, "read"):
        data = path.read_bytes()
    try:
        tensors = {name: tensor.float() for name, tensor in load(data).items()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or cut short ({error}): fetch or make it again") from error
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    places = {name.removeprefix(_BEFORE).removesuffix(_A).removesuffix(_B) for name in tensors}
    if not places or set(tensors) != {_BEFORE + place + side for place in places for side in (_A, _B)}:
        raise UserError(f"{path}: holds something else than an A and a B for each module: only LoRA is supported")
    changes = []
    for place in sorted(places):
        a, b = tensors[_BEFORE + place + _A], tensors[_BEFORE + place + _B]
        rank = setting(options, "r", "rank_pattern", place)
        alpha = setting(options, "lora_alpha", "alpha_pattern", place)
        outputs, inputs = linear[place].weight.shape if place in linear else (0, 0)
        if rank < 1 or a.shape != (rank, inputs) or b.shape != (outputs, rank):
            raise UserError(f"{path}: {place} is {tuple(b.shape)} x {tuple(a.shape)}, which does not fit the encoder")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise UserError(f"{path}: {place} holds numbers that are not finite: train the adapter again")
        changes.append((linear[place].weight, alpha / (math.sqrt(rank) if options.get("use_rslora") else rank), b @ a))
    with torch.no_grad():
        for weight, scale, change in changes:
            weight += scale * change
