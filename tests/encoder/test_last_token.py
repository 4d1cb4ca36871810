"""The last token's hidden state of a language model, against transformers; its batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from t2l_jax.encoder import Encoder, load_encoder
from t2l_jax.encoder.last_token import LastTokenEncoder
from t2l_jax.errors import UserError
from t2l_jax.io.locations import resolve

WORDS = ("sort", "the", "words", "by", "length", ".", "say", "yes", "or", "no")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with one token per word of WORDS."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(("?", *WORDS))}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    return folder


def normalised(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.sqrt((embeddings**2).sum(-1, keepdims=True)) * embeddings.shape[1] ** 0.5


def test_last_token_agrees_with_transformers(llama: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"last-token:{llama}")
    assert isinstance(encoder, Encoder)
    texts = ["sort the words by length", "say yes or no", "say yes .", " ".join(WORDS * 3)]
    z = encoder.embed(texts, cache=tmp_path)
    reference, tokenizer = LlamaForCausalLM.from_pretrained(llama).eval(), AutoTokenizer.from_pretrained(llama)
    for row, text in zip(z, [f"{texts[0]}.", f"{texts[1]}.", *texts[2:3], f"{texts[3]}."], strict=True):
        with torch.no_grad():
            states = reference(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(row, normalised(states[:, -1].numpy())[0], atol=1e-4)
    np.testing.assert_array_equal(z, encoder.embed(texts, cache=tmp_path))
    assert (encoder.name, encoder.dim) == (f"last-token:{llama}", 32)


def test_last_token_refuses_more_tokens_than_it_reads(llama: Path) -> None:
    with pytest.raises(UserError, match="description 2 has 4,098 tokens"):
        LastTokenEncoder.load(resolve(llama)).embed(["say no", "no " * 4096 + ". ."])


def test_a_language_model_is_no_sentence_encoder(llama: Path) -> None:
    with pytest.raises(UserError, match=r"no modules\.json.*last-token:"):
        load_encoder(str(llama))
