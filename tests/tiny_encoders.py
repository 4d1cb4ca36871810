"""Tiny random text encoders in folders that sentence-transformers writes."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WIDTH = 12
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "!", *LETTERS, *(f"##{letter}" for letter in LETTERS))
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES),
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
}


def save_encoder(
    folder: Path, config: Any = None, *after: Any, pooling: Any = "mean", length: int | None = 24, **settings: Any
) -> Path:
    """A folder with a random model, letters as its tokens, this pooling, and modules after that."""
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inner = folder.with_name(f"{folder.name}-inner")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks, model_max_length=36)
    fast.save_pretrained(inner)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config or transformers.BertConfig(**SIZES)).save_pretrained(inner)
    lengths = {} if length is None else {"processor_kwargs": {"model_max_length": length}}
    transformer = Transformer(str(inner), **lengths)
    modules = [transformer, Pooling(WIDTH, pooling), *(after or (Normalize(),))]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder), create_model_card=False)
    if length is not None:
        edit(folder / "sentence_bert_config.json", max_seq_length=length)
    return folder


def edit(file: Path, **fields: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    values = (json.loads(file.read_text()) if file.exists() else {}) | fields
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
