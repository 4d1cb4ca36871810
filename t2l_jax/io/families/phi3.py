"""Phi-3: Mistral with q, k and v stored as one matrix, gate and up as another, and part of each head rotated."""

from pathlib import Path

from t2l_jax.decoder.attention import Rotary
from t2l_jax.errors import UserError
from t2l_jax.io.families.family import Epsilon, Family, Gguf, Heads, ModuleName
from t2l_jax.io.families.mistral import MistralConfig
from t2l_jax.schema import Count

QKV = ModuleName("self_attn.qkv_proj", "attn_qkv")
GATE_UP = ModuleName("mlp.gate_up_proj", "ffn_up")


class Phi3Config(MistralConfig):
    """Rotary positions of part of the channels, never scaled."""

    num_key_value_heads: Heads | None = None
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Count | None = None

    def rotary(self, file: Path) -> Rotary:
        """The rotary positions. The one scaling that the family has depends on the length of what is read."""
        rotary = super().rotary(file)
        if rotary.scaling is not None:
            raise UserError(f"{file}: a rope type other than 'default' is not supported for this model_type")
        return rotary

    def rotary_width(self, file: Path) -> int:
        """The part of the channels that `partial_rotary_factor` asks for."""
        fraction = self.rope.partial_rotary_factor or self.partial_rotary_factor or 1.0
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        width = int(head_dim * fraction)
        if width % 2 or not width:
            raise UserError(
                f"{file}: partial_rotary_factor = {fraction} rotates {width} of {head_dim} channels; it must be an "
                "even number of them"
            )
        return width


FAMILY = Family(
    "phi3",
    Phi3Config,
    layer_names={
        "q_proj": QKV,
        "k_proj": QKV,
        "v_proj": QKV,
        "gate_proj": GATE_UP,
        "up_proj": GATE_UP,
    },
    gguf=Gguf("phi3", {"attention.sliding_window": "sliding_window"}, partial_rotary=True),
)
