"""A folder of sentence-transformers, as far as it is computed here: modules, pooling, prompt, lengths, tokenizer.

What it states and we do not compute raises `Unsupported`; what is damaged, UserError.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.normalizers import Lowercase, Normalizer
from tokenizers.normalizers import Sequence as Normalizers

from t2l_jax.encoder.families import FAMILIES, Family, Unsupported
from t2l_jax.encoder.sentence import Dense, DenseActivation, Normalize, PoolingMode, SentenceConfig
from t2l_jax.encoder.transformer import Learned, TransformerConfig
from t2l_jax.errors import UserError
from t2l_jax.io.files import read_json, read_json_value
from t2l_jax.schema import Count, Schema, Several, Width, checked, shown

NO_MODULES = (
    "has no modules.json, so it is no sentence-transformers model. To use a language model's last token write "
    "last-token: before its location"
)
_OFF: tuple[Any, ...] = (None, False, {}, [])
_POOLING: dict[str, PoolingMode] = {  # fields of older folders, in the order in which their results stand
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, DenseActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_LENGTH_FILES = tuple(f"sentence_{name}_config.json" for name in ("bert", "roberta", "xlm-roberta"))


class Module(Schema):
    """An entry of modules.json."""

    type: str
    path: str = ""

    @property
    def name(self) -> str:
        """The name of its class, without the package's, which has moved."""
        return self.type.rpartition(".")[2]


class _Modules(Schema):
    modules: Several[Module]


class _Model(Schema):  # config.json, beside what its family reads
    model_type: str = ""
    auto_map: dict[str, Any] | None = None
    max_position_embeddings: Count = 512


class _Settings(Schema):  # config_sentence_transformers.json
    model_type: str = "SentenceTransformer"
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    truncate_dim: Count | None = None


class _Lengths(Schema):  # sentence_bert_config.json
    max_seq_length: Count | None = None
    do_lower_case: bool = False


class _Pooling(Schema):
    pooling_mode: str | Several[str] | None = None
    include_prompt: bool = True


class _Dense(Schema):
    in_features: Width
    out_features: Width
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _TokenizerConfig(Schema):
    model_max_length: Annotated[float, Field(gt=0)] | None = None  # 1e30 is written for none
    truncation_side: str = "right"
    padding_side: str = "right"
    tokenizer_class: str | None = None
    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None


@dataclass(frozen=True)
class Folder:
    """What a folder says of its encoder."""

    path: Path  # of the transformer's files
    family: Family
    config: SentenceConfig
    dense: tuple[Path, ...]  # the folders of the dense layers
    prompt: str  # stands before every text
    tokenizer: Tokenizer  # cuts texts that are too long
    max_tokens: int


def read_folder(path: Path, trust_remote_code: bool = False) -> Folder:
    """What a folder says, its weights apart.

    With `trust_remote_code` a folder that brings code of its own for an architecture that has another meaning
    elsewhere is not computed here.
    """
    modules = read_modules(path)
    names = [module.name if module.type.startswith("sentence_transformers.") else module.type for module in modules]
    if names[:2] != ["Transformer", "Pooling"]:
        raise Unsupported(f"the modules {', '.join(shown(name) for name in names[:2]) or 'of an empty list'}")
    home = path / modules[0].path
    config_file = home / "config.json"
    values = read_json(config_file)
    model = checked(_Model, values, str(config_file))
    if model.model_type not in FAMILIES:
        raise Unsupported(f"the architecture {shown(model.model_type)}")
    if trust_remote_code and model.auto_map and model.model_type != "new":
        raise Unsupported("code of its own, which it was allowed to run")
    if (home / "adapter_config.json").exists():
        raise Unsupported("an adapter inside the model's folder")
    family = FAMILIES[model.model_type]
    transformer = family.config(values, config_file)
    settings = _settings(path)
    pooling = _pooling(path / modules[1].path / "config.json", bool(settings.prompt))
    after, dense = _after(path, modules[2:], names[2:], len(pooling) * transformer.width)
    tokenizer, max_tokens = _tokenizer(home, transformer, model)
    config = SentenceConfig(transformer, pooling, after, settings.truncate_dim)
    return Folder(home, family, config, dense, settings.prompt, tokenizer, max_tokens)


def read_modules(path: Path) -> Sequence[Module]:
    """The entries of modules.json. Raises UserError for a folder that is no sentence-transformers model."""
    file = path / "modules.json"
    if not file.is_file():
        raise UserError(f"{path}: {NO_MODULES}")
    modules = checked(_Modules, {"modules": read_json_value(file)}, str(file)).modules
    for module in modules:
        if not (path / module.path).resolve().is_relative_to(path.resolve()):
            raise UserError(f"{file}: the path {shown(module.path)} leaves the model's folder")
    return modules


@dataclass(frozen=True)
class _Stated:
    prompt: str
    truncate_dim: int | None


def _settings(path: Path) -> _Stated:
    file = path / "config_sentence_transformers.json"
    settings = checked(_Settings, read_json(file) if file.exists() else {}, str(file))
    if settings.model_type != "SentenceTransformer":
        raise Unsupported(f"a model of the type {shown(settings.model_type)}")
    prompts, name = settings.prompts or {}, settings.default_prompt_name
    if name is not None and name not in prompts:
        raise UserError(f"{file}: default_prompt_name {shown(name)} is none of the prompts")
    return _Stated(prompts[name] if name is not None else "", settings.truncate_dim)


def _refuse_others(values: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise Unsupported for a field that is not off and has none of its known values; () stands for any."""
    for name, value in values.items():
        if value not in _OFF and (name not in known or (known[name] and value not in known[name])):
            raise Unsupported(f"{name} = {shown(value)}")


def _pooling(file: Path, prompted: bool) -> tuple[PoolingMode, ...]:
    values = read_json(file)
    _refuse_others(
        values,
        {
            **dict.fromkeys(_POOLING, (True,)),
            **dict.fromkeys(("pooling_mode", "word_embedding_dimension", "embedding_dimension"), ()),
            "include_prompt": (True,),
        },
    )
    config = checked(_Pooling, values, str(file))
    if prompted and not config.include_prompt:
        raise Unsupported("pooling without the prompt")
    if config.pooling_mode is None:
        return tuple(mode for name, mode in _POOLING.items() if values.get(name) is True) or ("mean",)
    named = (config.pooling_mode,) if isinstance(config.pooling_mode, str) else config.pooling_mode
    modes: dict[str, PoolingMode] = {mode: mode for mode in _POOLING.values()}
    for name in named:
        if name not in modes:
            raise Unsupported(f"the pooling {shown(name)}")
    return tuple(modes[name] for name in named)


def _after(
    path: Path, modules: Sequence[Module], names: Sequence[str], width: int
) -> tuple[tuple[Dense | Normalize, ...], tuple[Path, ...]]:
    """What follows the pooling of this width, and the folders of the dense layers."""
    after: list[Dense | Normalize] = []
    folders = []
    for module, name in zip(modules, names, strict=True):
        file = path / module.path / "config.json"
        ends = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}
        if name == "Normalize":
            _refuse_others(read_json(file) if file.exists() else {}, ends)
            after.append(Normalize())
        elif name == "Dense":
            values = read_json(file)
            _refuse_others(values, {**dict.fromkeys(_Dense.model_fields, ()), **ends})
            config = checked(_Dense, values, str(file))
            if config.activation_function not in _ACTIVATIONS:
                raise Unsupported(f"the activation {shown(config.activation_function)}")
            if config.in_features != width:
                raise UserError(f"{file}: in_features = {config.in_features}, but what it reads is {width} wide")
            width = config.out_features
            after.append(Dense(config.in_features, width, config.bias, _ACTIVATIONS[config.activation_function]))
            folders.append(path / module.path)
        elif name != "Dropout":  # which does nothing here
            raise Unsupported(f"the module {shown(name)}")
    return tuple(after), tuple(folders)


def _tokenizer(home: Path, transformer: TransformerConfig, model: _Model) -> tuple[Tokenizer, int]:
    """The tokenizer, which cuts longer texts, and how many tokens it leaves of them."""
    file = home / "tokenizer_config.json"
    config = checked(_TokenizerConfig, read_json(file) if file.exists() else {}, str(file))
    if config.padding_side != "right":
        raise Unsupported("padding on the left")
    if config.truncation_side not in ("left", "right"):
        raise UserError(f"{file}: truncation_side must be left or right, got {shown(config.truncation_side)}")
    length_file = next((home / name for name in _LENGTH_FILES if (home / name).exists()), None)
    values = read_json(length_file) if length_file else {}
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    _refuse_others(
        values,
        {
            **dict.fromkeys(_Lengths.model_fields, ()),
            "transformer_task": ("feature-extraction",),
            "modality_config": ({"text": output},),
            "module_output_name": ("token_embeddings",),
        },
    )
    lengths = checked(_Lengths, values, str(length_file))
    tokenizer = _read_tokenizer(home, config, model.model_type)
    if lengths.do_lower_case:
        tokenizer.normalizer = _lowercased(tokenizer.normalizer)
    positions = transformer.positions
    room = positions.size - positions.first if isinstance(positions, Learned) else 2**20
    stated = lengths.max_seq_length or min(config.model_max_length or room, model.max_position_embeddings)
    most = int(min(stated, room))
    if most <= tokenizer.num_special_tokens_to_add(is_pair=False):
        raise UserError(f"{length_file or file}: a text of {most} tokens has no room for words")
    tokenizer.no_padding()
    tokenizer.enable_truncation(most, direction=config.truncation_side)
    return tokenizer, most


def _read_tokenizer(home: Path, config: _TokenizerConfig, model_type: str) -> Tokenizer:
    file, words = home / "tokenizer.json", home / "vocab.txt"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        elif model_type == "bert" and words.is_file():
            tokenizer = BertWordPieceTokenizer(
                str(words),
                lowercase=config.do_lower_case is not False,
                strip_accents=config.strip_accents,
                handle_chinese_chars=config.tokenize_chinese_chars is not False,
            )._tokenizer
        else:
            raise Unsupported("a tokenizer without tokenizer.json")
    except Unsupported:
        raise
    except Exception as error:  # the library's parser raises plain exceptions
        reason = " ".join(str(error).split())
        raise UserError(f"{home}: its tokenizer cannot be read ({reason:.200}); download the model again") from error
    _check_normalizer(tokenizer, config)
    return tokenizer


def _check_normalizer(tokenizer: Tokenizer, config: _TokenizerConfig) -> None:
    """Raise Unsupported if tokenizer_config.json contradicts tokenizer.json, where transformers believes the former."""
    parts = json.loads(tokenizer.normalizer.__getstate__()) if tokenizer.normalizer else {}
    if parts.get("type") != "BertNormalizer":
        return
    rebuilt = config.tokenizer_class in ("BertTokenizer", "BertTokenizerFast", None)  # with defaults of its own
    given = {
        "lowercase": True if rebuilt and config.do_lower_case is None else config.do_lower_case,
        "handle_chinese_chars": True
        if rebuilt and config.tokenize_chinese_chars is None
        else config.tokenize_chinese_chars,
        "strip_accents": config.strip_accents,
    }
    for name, value in given.items():
        if (value is not None or (rebuilt and name == "strip_accents")) and value != parts.get(name):
            raise Unsupported(f"{name} = {shown(value)}, where tokenizer.json has {shown(parts.get(name))}")


def _lowercased(normalizer: Normalizer | None) -> Normalizer:
    return Lowercase() if normalizer is None else Normalizers([Lowercase(), normalizer])
