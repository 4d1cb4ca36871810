"""A plugin for vLLM: a model name that begins with `t2l:` is a description, whose adapter is written on first use.

    pip install .                                              a clone of this repository, where vLLM is installed
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 8
    curl .../v1/chat/completions -d '{"model": "t2l:Answer with the last word.", "messages": ...}'

Settings are variables of the environment: T2L_RESOLVER_MODEL (the hypernetwork; default: the packaged one),
T2L_RESOLVER_FOLDER (where adapters go; default: a folder of this user's on the RAM disk) and T2L_RESOLVER_MOST (how
many are kept; default: 1000).
"""

import asyncio
import logging
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from t2l_jax.errors import UserError

if TYPE_CHECKING:
    from t2l_jax.serving.described import DescribedFolders

log = logging.getLogger("vllm.t2l_jax")  # vLLM shows its own loggers only


class DescriptionResolver(LoRAResolver):
    """Model names to adapters; vLLM keeps what it has been given."""

    @cached_property
    def folders(self) -> "DescribedFolders":
        """Made when the first description is named: for other names vLLM is as if this package were not there."""
        if "jax" not in sys.modules:  # the network is small, and an accelerator's memory is vLLM's
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from t2l_jax.serving.described import DescribedFolders

        folder = Path(os.environ.get("T2L_RESOLVER_FOLDER", f"/dev/shm/t2l-{os.getuid()}"))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else, who could put adapters there: choose another")
        most = int(os.environ.get("T2L_RESOLVER_MOST", "1000"))
        return DescribedFolders(folder, os.environ.get("T2L_RESOLVER_MODEL"), most=most)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter of a description; None, which vLLM reports as 404, for other names and those that fail."""
        if not lora_name.startswith("t2l:"):
            return None
        try:
            folder = await asyncio.to_thread(lambda: self.folders.find(lora_name))
        except (UserError, OSError, ValueError) as error:
            log.warning("%.100s: %s", lora_name, error)
            return None
        if folder is None:
            return None
        number = 1 + int(folder.name[:12], 16)  # newer versions of vLLM replace it by their own
        return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))


def register() -> None:
    """What vLLM calls when it starts: the entry point of the group vllm.general_plugins."""
    LoRAResolverRegistry.register_resolver("t2l_jax", DescriptionResolver())
