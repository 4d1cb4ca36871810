"""Runs in llama-cpp-python's environment: logits of prompts by a GGUF model, alone and with each of some adapters.

Arguments: the model, a JSON file with a list of token ids for each prompt, the .npz file to write, adapters. It writes
"base" and, by the adapter's file name, its logits: [all tokens of all prompts, vocabulary].
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

F32 = 0  # ggml's number of the type: keys and values are kept as they are computed


def logits(model: str, prompts: list[list[int]], adapter: str | None) -> np.ndarray:
    options = {"n_ctx": 256, "type_k": F32, "type_v": F32, "flash_attn": False, "n_threads": 2}
    llm = Llama(model, lora_path=adapter, logits_all=True, verbose=False, **options)
    rows = []
    for prompt in prompts:
        llm.reset()
        llm.eval(prompt)
        rows.append(llm.scores[: len(prompt)].copy())
    return np.concatenate(rows)


def main(model: str, prompts: str, out: str, *adapters: str) -> None:
    tokens = json.loads(Path(prompts).read_text())
    found = {"base": logits(model, tokens, None)}
    for adapter in adapters:
        found[Path(adapter).name] = logits(model, tokens, adapter)
    np.savez(out, **found)


main(*sys.argv[1:])
