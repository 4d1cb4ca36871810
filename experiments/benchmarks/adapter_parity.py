"""Are adapters exchanged with peft exactly, and does a fresh hypernetwork change nothing?

Command: python -m experiments.benchmarks.adapter_parity                                       (a minute on 2 cores)
Answer:  logits agree to rounding in both directions; fresh L, M and S change nothing (results/adapter_parity)

On SmolLM2-135M-Instruct and a real text, in float32: an adapter of ours read by peft, one of peft's read by us (with
rsLoRA and a rank of its own for one projection), and hypernetworks L, M and S as initialised for SFT against the base
model without an adapter.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import t2l_jax
from experiments.tools.results import RESULTS, write
from t2l_jax import hypernet
from t2l_jax.hypernet import Condition, HypernetConfig, write_adapters
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter


@dataclass(frozen=True)
class AdapterParity:
    """Compare adapters here and in peft."""

    out: Path = RESULTS / "adapter_parity"


def torch_base(source: str) -> torch.nn.Module:
    """The base model in PyTorch, from the same GGUF file."""
    folder = resolve(source).path
    file = next(folder.glob("*.gguf")).name
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


def compare(
    name: str, llm: t2l_jax.LLM, adapter: Adapter, model: torch.nn.Module, tokens: np.ndarray
) -> dict[str, Any]:
    """Our logits with an adapter next to PyTorch's: the largest difference, and how large logits and change are."""
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    ours = np.asarray(llm(tokens, adapter))
    return {
        "adapter": name,
        "largest difference": float(f"{np.abs(ours - theirs).max():.1e}"),
        "largest logit": round(float(np.abs(theirs).max()), 1),
        "largest change by the adapter": round(float(np.abs(ours - np.asarray(llm(tokens))).max()), 1),
    }


def main(args: AdapterParity) -> None:
    """Write the comparisons."""
    model, rows, fresh_rows = t2l_jax.load(), [], []
    llm = model.load_base()
    tokens = np.asarray([llm.tokenizer(str(__doc__)).input_ids], np.int32)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = model.generate(["Answer with the last word, in capital letters."])[0]
        t2l_jax.save_peft(adapter, Path(scratch) / "ours", base_model=model.config.base_name)
        theirs = PeftModel.from_pretrained(torch_base(model.config.base), str(Path(scratch) / "ours")).eval()
        rows.append(compare("ours, read by peft", llm, adapter, theirs, tokens))
        targets = ["q_proj", "o_proj", "down_proj"]
        options = LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=targets, rank_pattern={"o_proj": 2})
        theirs = get_peft_model(torch_base(model.config.base), options).eval()
        torch.manual_seed(0)
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        theirs.save_pretrained(Path(scratch) / "theirs")
        read = t2l_jax.load_peft(Path(scratch) / "theirs", llm.config)
        rows.append(compare("peft's, read by us", llm, read, theirs, tokens))
    for head in ("L", "M", "S"):
        config = HypernetConfig(head=head)
        variables = hypernet.init(jax.random.key(0), config, model.config.lora)
        z = jax.random.normal(jax.random.key(1), (1, config.task.dim))
        fresh = write_adapters(config, model.config.lora, variables, Condition(z=z))[0]
        fresh_rows.append({"hypernetwork": head, "difference": float(np.abs(llm(tokens, fresh) - llm(tokens)).max())})
    write(args.out, {"Adapters": rows, "Fresh hypernetworks": fresh_rows})


if __name__ == "__main__":
    main(tyro.cli(AdapterParity))
