"""Text that comes token by token is the text of all tokens."""

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from t2l_jax.decoder.detokenize import LONGEST_WINDOW, Detokenizer, detokenize


def byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def piece_tokenizer():
    """As Gemma's and Llama 2's: spaces are marks, the first of which is dropped; unknown characters are bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁c", "é"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer, "pieces": piece_tokenizer}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_together_are_the_whole_text(name, seed):
    """Random tokens, so many that the window moves, and words among them."""
    tokenizer = TOKENIZERS[name]()
    rng = np.random.default_rng(seed)
    words = tokenizer("a b c é € 😀", add_special_tokens=False)["input_ids"] * 30
    first = 0 if name == "bytes" else 258
    tokens = [*words, *rng.integers(first, len(tokenizer), 3 * LONGEST_WINDOW).tolist(), *words]
    pieces = Detokenizer(tokenizer)
    texts = [pieces.add(token) for token in tokens]
    assert "".join(texts) + pieces.rest() == detokenize(tokenizer, tokens)
    assert len(pieces._window) < len(tokens) // 2


def test_a_character_of_several_tokens_comes_whole():
    tokenizer = byte_tokenizer()
    tokens = tokenizer("aé€😀", add_special_tokens=False)["input_ids"]
    pieces = Detokenizer(tokenizer)
    assert [pieces.add(token) for token in tokens] == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert pieces.rest() == ""
    assert (pieces.add(tokens[1]), pieces.rest()) == ("", "\ufffd")


def test_text_goes_on_after_bytes_that_spoil_what_was_a_character():
    tokenizer = piece_tokenizer()
    words, spoiled = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("b", "€"))
    pieces = Detokenizer(tokenizer)
    texts = [pieces.add(token) for token in [*words, *spoiled, spoiled[0], *words]]
    assert texts[3] == "€"
    assert texts[-1].endswith("b")
