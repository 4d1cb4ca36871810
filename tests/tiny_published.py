"""A tiny published hypernetwork, the tiny base model it is for, and a text encoder that needs no model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2l_jax import hypernet
from t2l_jax.encoder import prepare
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.io.published import ModelConfig, Reads, save_model
from t2l_jax.lora import LoraModule, LoraSpec

WIDTH_Z = 12
SPEC = LoraSpec((LoraModule("q_proj", 16, 16), LoraModule("v_proj", 16, 8)), num_layers=2, rank=2)
NET = HypernetConfig(task=TaskEncoderConfig(dim=WIDTH_Z), latent=16, head_in=16, init="reconstruction")
WORDS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "red", "blue", "green", "white", "black",
    "say", "the", "last", "first", "word", "answer", "with",
)  # fmt: skip
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


class HashEncoder:
    """z is drawn from a random stream that the text seeds. It remembers what it was given."""

    name = "hash"
    dim = WIDTH_Z
    adapter = None
    fingerprint = "hash"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
        prepared = [prepare(text, f"description {index + 1}") for index, text in enumerate(texts)]
        self.texts += prepared
        return np.array([_draw(text) for text in prepared], np.float32).reshape(-1, WIDTH_Z)


def _draw(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(WIDTH_Z)


def tiny_config(base: str | Path = "no/such/base", **changes: Any) -> ModelConfig:
    return replace(ModelConfig(NET, SPEC, "hash", str(base), "org/tiny"), **changes)


def reading(reads: Reads, base: str | Path = "no/such/base") -> ModelConfig:
    """A configuration that reads descriptions, instances or both, with the width that follows."""
    width = WIDTH_Z * (1 + (reads == "both"))
    return tiny_config(base, reads=reads, hypernet=replace(NET, task=TaskEncoderConfig(dim=width)))


def save_published(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """A hypernetwork with random weights, in full precision."""
    variables = hypernet.init(jax.random.key(seed), config.hypernet, config.lora)
    save_model(folder, config, variables, "# A tiny model\n", np.float32)
    return folder


def save_base(folder: Path) -> Path:
    """A tiny random Llama that SPEC fits, with one token per word of WORDS."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = ["?", "</s>", "system", "user", "assistant", *WORDS]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="?", eos_token="</s>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.4,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path in a folder, with what the files hold."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
