"""Text-to-LoRA in JAX: from a sentence that describes a task, the LoRA adapter that specialises a frozen LLM to it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2l_jax.errors import UserError
    from t2l_jax.io.peft import load_peft, save_peft
    from t2l_jax.llm import LLM
    from t2l_jax.lora import Adapter, LoraSpec, stack
    from t2l_jax.model import Model, load

__version__ = "0.1.0"
__all__ = ["LLM", "Adapter", "LoraSpec", "Model", "UserError", "load", "load_peft", "save_peft", "stack"]

_HOMES = {
    "LLM": "llm",
    "Adapter": "lora",
    "LoraSpec": "lora",
    "Model": "model",
    "UserError": "errors",
    "load": "model",
    "load_peft": "io.peft",
    "save_peft": "io.peft",
    "stack": "lora",
}


def __getattr__(name: str) -> Any:
    """Import a public name at first use: `t2l --help` need not wait for JAX and PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
