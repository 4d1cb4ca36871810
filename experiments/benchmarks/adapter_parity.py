"""Adapters on SmolLM2-135M-Instruct: ours in peft, peft's in ours, and fresh hypernetworks that change nothing.

Run:    python experiments/adapter_parity.py
Time:   about a minute on 2 cores
Result: 7.7e-05 and 9.1e-05 on logits up to 39; fresh L, M and S differ by exactly 0

Largest absolute differences of float32 logits on a real text, against peft in PyTorch; and for hypernetworks L, M and S
at their initialisation for SFT, against the base model without an adapter (exactly 0 is asked for).
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import t2l_jax
from t2l_jax import hypernet
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter
from t2l_jax.model import Model


def torch_base(source: str) -> torch.nn.Module:
    """The base model in PyTorch, from the same GGUF file."""
    folder = resolve(source)
    file = next(folder.glob("*.gguf")).name
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


def largest_difference(llm: t2l_jax.LLM, adapter: Adapter, model: torch.nn.Module, tokens: np.ndarray) -> str:
    """Between our logits with an adapter and PyTorch's, and how large the logits are."""
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    ours = np.asarray(llm(tokens, adapter))
    largest, moved = np.abs(theirs).max(), np.abs(ours - np.asarray(llm(tokens))).max()
    return (
        f"{np.abs(ours - theirs).max():.1e} (logits up to {largest:.1f}, the adapter moves them by up to {moved:.1f})"
    )


def main(model: Model) -> None:
    """Print the three comparisons."""
    llm = model.load_base()
    tokens = np.asarray([llm.tokenizer(str(__doc__)).input_ids], np.int32)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = model.generate(["Answer with the last word, in capital letters."])[0]
        t2l_jax.save_peft(adapter, Path(scratch) / "ours", base_model=model.config.base_name)
        theirs = PeftModel.from_pretrained(torch_base(model.config.base), str(Path(scratch) / "ours")).eval()
        print("ours, read by peft:", largest_difference(llm, adapter, theirs, tokens))
        targets = ["q_proj", "o_proj", "down_proj"]
        options = LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=targets, rank_pattern={"o_proj": 2})
        theirs = get_peft_model(torch_base(model.config.base), options).eval()
        torch.manual_seed(0)
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        theirs.save_pretrained(Path(scratch) / "theirs")
        read = t2l_jax.load_peft(Path(scratch) / "theirs", llm.config)
        print("peft's, read by us:", largest_difference(llm, read, theirs, tokens))
    for head in ("L", "M", "S"):
        config = HypernetConfig(head=head)
        variables = hypernet.init(jax.random.key(0), config, model.config.lora)
        z = jax.random.normal(jax.random.key(1), (1, config.task.dim))
        fresh = hypernet.generate(config, model.config.lora, variables, z)[0]
        print(f"fresh hypernetwork {head}: difference {float(np.abs(llm(tokens, fresh) - llm(tokens)).max())}")


if __name__ == "__main__":
    main(t2l_jax.load())
