"""The LoRA adapter of a text encoder, added to the weights of a PyTorch model."""

from pathlib import Path
from typing import Any

from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE, read_weights

_BEFORE, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def add_adapter(model: Any, folder: Path) -> None:
    """Add to the weights of a PyTorch model what the adapter of a folder changes: W += scale * B A.

    Raises UserError if a file is missing or damaged, an option is not supported, or a tensor fits no linear layer.
    """
    import torch  # here, since importing it takes seconds

    options, path = AdapterConfig.read(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    tensors: dict[str, torch.Tensor] = {}
    for stored, array in read_weights(path).items():
        name = stored.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
        if name in tensors:
            raise UserError(f"{path}: the tensor {name} comes twice, with `.default` and without: keep one of them")
        tensors[name] = torch.from_numpy(array.copy())
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    places = {name.removeprefix(_BEFORE).removesuffix(_A).removesuffix(_B) for name in tensors}
    if not places or set(tensors) != {_BEFORE + place + side for place in places for side in (_A, _B)}:
        raise UserError(f"{path}: holds something else than an A and a B for each module: only LoRA is supported")
    changes = []
    for place in sorted(places):
        a, b = tensors[_BEFORE + place + _A], tensors[_BEFORE + place + _B]
        rank = options.rank(place)
        outputs, inputs = linear[place].weight.shape if place in linear else (0, 0)
        if a.shape != (rank, inputs) or b.shape != (outputs, rank):
            raise UserError(f"{path}: {place} is {tuple(b.shape)} x {tuple(a.shape)}, which does not fit the encoder")
        if not options.adapts(place):
            raise UserError(f"{path}: adapts {place}, which is none of the target_modules of {CONFIG_FILE}")
        change = options.scale(place) * (b @ a)
        if not change.isfinite().all():
            raise UserError(f"{path}: the change of {place} is too large for float32: train the adapter again")
        changes.append((linear[place].weight, change))
    with torch.no_grad():
        for weight, change in changes:
            weight += change
