"""A Hugging Face `config.json` as a DecoderConfig: what transformers would compute from it, or a refusal.

An attribute that no family's file mentions is passed over, with a warning, only if transformers' own code of the family
does not mention it either.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from t2l_jax.decoder import DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.io.families import BY_MODEL_TYPE, Family
from t2l_jax.schema import Schema, checked, shown

# Attributes that do not change what the decoder computes from the same tokens.
_HARMLESS = frozenset({
    "_attn_implementation", "_commit_hash", "_name_or_path", "_sliding_window_pattern", "architectures",
    "attention_dropout", "attn_implementation", "auto_map", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "id2label", "initializer_range",
    "is_llama_config", "label2id", "model_type", "name_or_path", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict",
    "sliding_window_size", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "unk_token_id", "unsloth_fixed", "unsloth_version", "use_cache",
})  # fmt: skip
# Options of text generation, which older files hold here.
_GENERATION = frozenset({
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
_ON_BY_DEFAULT = frozenset({"is_causal"})  # null and false switch these off, not on
# The files of transformers that read a config whatever its family.
_SHARED_SOURCES = ("cache_utils", "configuration_utils", "masking_utils", "modeling_layers", "modeling_rope_utils",
                   "modeling_utils")  # fmt: skip


def find_family(config: Mapping[str, Any], file: Path) -> Family:
    """The family that a `config.json`'s content names. Raises UserError if it is not supported."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in BY_MODEL_TYPE:
        names = ", ".join(BY_MODEL_TYPE)
        raise UserError(f"{file}: model_type {shown(model_type)} is not supported; choose a model of {names}")
    return BY_MODEL_TYPE[model_type]


def decoder_config(config: Mapping[str, Any], file: Path) -> DecoderConfig:
    """The decoder that a `config.json`'s content describes; `file` is named in errors.

    Raises UserError for another model type, a missing attribute, and any attribute or value that is not supported.
    """
    family = find_family(config, file)
    values = checked(family.config, config, str(file))
    decoder = values.decoder(file)
    _check_unknown(_unknown(values), family, file)
    return decoder


def _unknown(values: Schema, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """What a schema does not declare, the schemas in it included: the path to it, its name, and its value."""
    for name, value in (values.model_extra or {}).items():
        yield path, name, value
    for name in type(values).model_fields:
        if isinstance(inner := getattr(values, name), Schema):
            yield from _unknown(inner, f"{path}{name}.")


def _check_unknown(unknown: Iterator[tuple[str, str, Any]], family: Family, file: Path) -> None:
    """Refuse attributes that transformers reads; warn of those that it does not."""
    ignored = []
    for path, name, value in unknown:
        off = value is None or value is False
        if name in _HARMLESS or name in _GENERATION or (value is True if name in _ON_BY_DEFAULT else off):
            continue
        if name in _names_in_transformers(family.model_type):
            raise UserError(
                f"{file}: attribute {path}{name} = {shown(value)} is not supported for model_type "
                f"{family.model_type!r}; ignoring it could change the results. Remove it only if you know that it has "
                "no effect"
            )
        ignored.append(shown(path + name).strip("'\""))
    if ignored:
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        warnings.warn(f"{file}: ignored, as transformers does: {', '.join(ignored[:5])}{more}", stacklevel=2)


@cache
def _names_in_transformers(model_type: str) -> frozenset[str]:
    """Every name in transformers' code of a family that could be an attribute's: names, fields, arguments, text."""
    spec = find_spec("transformers")  # importing it takes a second
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    folder = package / "models" / model_type.removesuffix("_text")  # a text model lies beside the one that sees
    names = set()
    for source in [*folder.glob("*.py"), *(package / f"{name}.py" for name in _SHARED_SOURCES)]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(attr=name) | ast.arg(arg=name) | ast.Name(id=name) | ast.Constant(value=str(name)):
                    names.add(name)
    return frozenset(names)
