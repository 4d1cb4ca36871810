"""Adapters of text encoders with random weights, made by PEFT."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model


def save_encoder_adapter(folder: Path, model: Any, base: str, **options: Any) -> torch.nn.Module:
    """Save an adapter with random B for a model of transformers as a PEFT folder; the model with it."""
    with warnings.catch_warnings():
        # PEFT asks transformers for an attribute that has another name by now.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        lora = LoraConfig(r=3, lora_alpha=6, target_modules=r"encoder\..*(query|value|dense)", **options)
        adapted = get_peft_model(model, lora).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted
