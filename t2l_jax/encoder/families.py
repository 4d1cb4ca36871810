"""The families of text encoders that run in JAX: what `config.json` means, and where parameters lie in the files.

For another architecture, or option of one, `Unsupported` is raised: sentence-transformers computes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from t2l_jax.encoder.transformer import Activation, Learned, RotaryPositions, TransformerConfig
from t2l_jax.errors import UserError
from t2l_jax.io.families.family import Depth, Epsilon, Heads
from t2l_jax.schema import Count, Index, Positive, Schema, Width, checked, shown

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Of a whole model's file, what its embeddings do not need.
UNREAD = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "rotary_emb.")


class Unsupported(Exception):
    """What a folder asks for that is not computed here, in a few words."""


class _Config(Schema):
    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    hidden_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Heads
    intermediate_size: Width
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-12
    type_vocab_size: Annotated[int, Field(ge=0, le=2**16)] = 2
    max_position_embeddings: Count = 512
    position_embedding_type: str | None = None

    def transformer(self, positions: Learned | RotaryPositions, file: Path, **changes: Any) -> TransformerConfig:
        """The transformer of these sizes, with these positions."""
        if self.hidden_act not in _ACTIVATIONS:
            raise Unsupported(f"the activation {shown(self.hidden_act)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"{file}: hidden_size = {self.hidden_size} is not an even head width times num_attention_heads = "
                f"{self.num_attention_heads}"
            )
        return TransformerConfig(
            vocab_size=self.vocab_size,
            width=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            mlp_width=self.intermediate_size,
            positions=positions,
            activation=_ACTIVATIONS[self.hidden_act],
            norm_eps=self.layer_norm_eps,
            token_types=self.type_vocab_size,
            **changes,
        )


class _Bert(_Config):
    is_decoder: bool = False
    position_embedding_type: str | None = "absolute"

    def learned(self, positions: Learned, file: Path) -> TransformerConfig:
        """The transformer, if its positions are learned and it sees the whole text."""
        if self.position_embedding_type not in ("absolute", None):
            raise Unsupported(f"positions of the type {shown(self.position_embedding_type)}")
        if self.is_decoder:
            raise Unsupported("a decoder of this architecture")
        if positions.first >= positions.size:
            raise UserError(f"{file}: pad_token_id leaves none of the {positions.size} positions")
        return self.transformer(positions, file)


class _Roberta(_Bert):
    pad_token_id: Index = 1


class _RopeScaling(Schema):
    type: str | None = None
    rope_type: str | None = None
    factor: Annotated[float, Field(ge=1, le=1e6)] = 1.0
    mixed_b: float | None = None
    rope_theta: Positive | None = None

    @property
    def kind(self) -> str:
        """The type of scaling."""
        return self.rope_type or self.type or "default"


class _Gte(_Config):
    position_embedding_type: str | None = "rope"
    rope_theta: Positive | None = None
    rope_scaling: _RopeScaling | None = None
    rope_parameters: _RopeScaling | None = None
    layer_norm_type: str = "layer_norm"
    logn_attention_scale: bool = False
    pack_qkv: bool = True

    def rotary(self, theta: float, file: Path) -> TransformerConfig:
        """The transformer; `theta` is the base of its frequencies where the file does not say it."""
        rope = self.rope_scaling or self.rope_parameters or _RopeScaling()
        plain = {
            "position_embedding_type": (self.position_embedding_type, "rope"),
            "layer_norm_type": (self.layer_norm_type, "layer_norm"),
            "logn_attention_scale": (self.logn_attention_scale, False),
            "pack_qkv": (self.pack_qkv, True),
            "mixed_b": (rope.mixed_b, None),
        }
        for name, (value, known) in plain.items():
            if value != known:
                raise Unsupported(f"{name} = {shown(value)}")
        if rope.kind not in ("ntk", "default"):
            raise Unsupported(f"rotary positions scaled by {shown(rope.kind)}")
        factor = rope.factor if rope.kind == "ntk" else 1.0
        positions = RotaryPositions(rope.rope_theta or self.rope_theta or theta, factor)
        return self.transformer(positions, file, gated=True)


def _bert(values: object, file: Path) -> TransformerConfig:
    config = checked(_Bert, values, str(file))
    return config.learned(Learned(config.max_position_embeddings), file)


def _roberta(values: object, file: Path) -> TransformerConfig:
    config = checked(_Roberta, values, str(file))
    blank = config.pad_token_id
    return config.learned(Learned(config.max_position_embeddings, blank + 1, blank), file)


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Args:
        config: the content of its config.json, and that file, to the transformer.
        prefix: of its tensors' names where the file is that of a whole model.
        modules: module of a layer -> its name in the files. Modules of one name are stored as one tensor, one below
            the other, in this order.
    """

    config: Callable[[object, Path], TransformerConfig]
    prefix: str
    modules: Mapping[str, str]
    top: Mapping[str, str] = field(
        default_factory=lambda: {
            "embedding": "embeddings.word_embeddings",
            "positions": "embeddings.position_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "embedding_norm": "embeddings.LayerNorm",
        }
    )

    def place(self, module: str, layer: int) -> str:
        """The path of a layer's module in PyTorch's model."""
        return f"encoder.layer.{layer}.{self.modules[module]}"


_BERT_MODULES = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "o_proj": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "up_proj": "intermediate.dense",
    "down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_GTE_MODULES = {
    "q_proj": "attention.qkv_proj",
    "k_proj": "attention.qkv_proj",
    "v_proj": "attention.qkv_proj",
    "o_proj": "attention.o_proj",
    "attn_norm": "attn_ln",
    "up_proj": "mlp.up_gate_proj",
    "gate_proj": "mlp.up_gate_proj",
    "down_proj": "mlp.down_proj",
    "mlp_norm": "mlp_ln",
}
FAMILIES = {
    "bert": Family(_bert, "bert.", _BERT_MODULES),
    "roberta": Family(_roberta, "roberta.", _BERT_MODULES),
    "xlm-roberta": Family(_roberta, "roberta.", _BERT_MODULES),
    # GTE v1.5: the code that came with its folders calls it "new", transformers "gte".
    "new": Family(lambda values, file: checked(_Gte, values, str(file)).rotary(10_000.0, file), "new.", _GTE_MODULES),
    "gte": Family(lambda values, file: checked(_Gte, values, str(file)).rotary(160_000.0, file), "new.", _GTE_MODULES),
}
