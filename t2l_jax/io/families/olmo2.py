"""OLMo 2: norms after attention and MLP instead of before them, and norms of all queries and of all keys together."""

from dataclasses import replace
from pathlib import Path

from t2l_jax.decoder import DecoderConfig
from t2l_jax.io.families.family import AttentionBiasConfig, Epsilon, Family, Gguf, ModuleName, with_attention


class Olmo2Config(AttentionBiasConfig):
    """Norms."""

    rms_norm_eps: Epsilon = 1e-5

    def decoder(self, file: Path) -> DecoderConfig:
        """The decoder with the norms in their places."""
        decoder = with_attention(super().decoder(file), qk_norm="projection")
        return replace(decoder, pre_norms=False, post_norms=True)


FAMILY = Family(
    "olmo2",
    Olmo2Config,
    layer_names={
        "post_attn_norm": ModuleName("post_attention_layernorm", "post_attention_norm"),
        "post_mlp_norm": ModuleName("post_feedforward_layernorm", "post_ffw_norm"),
    },
    gguf=Gguf("olmo2"),
)
