"""The decoder against transformers' PyTorch, and against itself along every other way to the same numbers."""

import dataclasses
import re
import zlib
from functools import partial
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_models import FAMILIES, LENGTH, random_tokens, save_tiny, torch_logits

from t2l_jax.decoder import Decoder, DecoderConfig, init_cache, logits
from t2l_jax.decoder.attention import CAUSAL_BLOCKS, LONG_ROW, AttentionConfig, LayerAttention, Rotary
from t2l_jax.decoder.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.locations import resolve
from t2l_jax.lora import Adapter, init_adapter, merge, stack

TOLERANCE = 1e-3  # on logits up to some 35, float32

LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 8)
YARN = YarnScaling(8.0, 16, beta_fast=2.5, beta_slow=0.3, attention_factor=1.2)

# Every feature of every family at once: what holds for this decoder holds for simpler ones.
CONFIG = DecoderConfig(
    vocab_size=50,
    width=32,
    num_layers=3,
    mlp_width=48,
    attention=AttentionConfig(
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        layers=(
            LayerAttention(5, Rotary(100.0, YARN)),
            LayerAttention(None, Rotary(30.0, LinearScaling(2.0))),
            LayerAttention(5, Rotary(100.0, LLAMA3)),
        ),
        rotary_width=6,
        scale=0.3,
        softcap=3.0,
        qkv_bias=True,
        out_bias=True,
        qk_norm="head",
    ),
    mlp_bias=True,
    norm_offset=1.0,
    post_norms=True,
    embed_scale=2.0,
    residual_scale=0.7,
    logit_scale=1.3,
    logit_softcap=20.0,
    tied_head=False,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 24)))


def random_params(config: DecoderConfig):
    """Weights that depend on their own path only, so that two configs share what they have in common."""
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS)["params"]

    def draw(path, leaf):
        name = "/".join(key.key for key in path)
        fan_in = leaf.shape[-2] if name.endswith("kernel") else 9
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return jnp.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@partial(jax.jit, static_argnums=0)
def run(config, params, tokens, adapter=None, segments=None, positions=None):
    hidden, _ = Decoder(config).apply({"params": params}, tokens, adapter, segments=segments, positions=positions)
    return logits(config, params, hidden)


@jax.jit
def run_cached(params, tokens, segments, positions, cache):
    hidden, cache = Decoder(CONFIG).apply(
        {"params": params}, tokens, segments=segments, positions=positions, cache=cache
    )
    return logits(CONFIG, params, hidden), cache


def assert_same(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    model = save_tiny(family, tmp_path)
    tokens = random_tokens(2, LENGTH)
    theirs = torch_logits(model, tokens)
    assert 5 < theirs.abs().max() < 100
    assert_same(run(*load_base(resolve(tmp_path)), jnp.asarray(tokens.numpy())), theirs, TOLERANCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers' GGUF reader
def test_logits_of_smollm2_are_those_of_transformers(smollm2, optimised, gguf_parsed_once):
    text = "The Loire is the longest river of France. It rises in the Massif Central, not far from the Rhône, and runs "
    tokens = load_tokenizer(resolve(smollm2))(2 * text + "north and then west to the Atlantic.").input_ids
    assert len(tokens) >= 64
    file = next(smollm2.glob("*.gguf")).name
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, gguf_file=file, dtype=torch.float32)
    ours = run(*load_base(resolve(smollm2)), jnp.asarray([tokens]))
    assert_same(ours, torch_logits(model, torch.tensor([tokens])), TOLERANCE)


# One other value for each field; what must follow from it is changed along.
_ATTENTION_VARIANTS = {
    "num_heads": {"num_heads": 2},
    "num_kv_heads": {"num_kv_heads": 4},
    "head_dim": {"head_dim": 16},
    "layers": {"layers": CONFIG.attention.layers[::-1][1:] + CONFIG.attention.layers[:1]},
    "rotary_width": {"rotary_width": None},
    "scale": {"scale": None},
    "softcap": {"softcap": None},
    "qkv_bias": {"qkv_bias": False},
    "out_bias": {"out_bias": False},
    "qk_norm": {"qk_norm": "projection"},
}
_LAYER_VARIANTS = {
    "window": {"window": None},
    "rotary": {"rotary": None},
}
_ROTARY_VARIANTS = {
    "theta": {"theta": 10_000.0},
    "scaling": {"scaling": None},
}
_SCALING_VARIANTS = {
    LinearScaling(2.0): {"factor": {"factor": 3.0}},
    LLAMA3: {
        "factor": {"factor": 2.0},
        "low_freq_factor": {"low_freq_factor": 0.1},
        "high_freq_factor": {"high_freq_factor": 2.0},
        "original_length": {"original_length": 16},
    },
    YARN: {
        "factor": {"factor": 2.0},
        "original_length": {"original_length": 64},
        "beta_fast": {"beta_fast": 0.4},
        "beta_slow": {"beta_slow": 1.5},
        "truncate": {"truncate": False},
        "attention_factor": {"attention_factor": 1.0},
    },
}
_VARIANTS = {
    "vocab_size": {"vocab_size": 51},
    "width": {"width": 40},
    "num_layers": {
        "num_layers": 2,
        "attention": dataclasses.replace(CONFIG.attention, layers=CONFIG.attention.layers[:2]),
    },
    "mlp_width": {"mlp_width": 40},
    "attention": {"attention": dataclasses.replace(CONFIG.attention, softcap=1.0)},
    "activation": {"activation": "gelu_tanh"},
    "mlp_bias": {"mlp_bias": False},
    "norm_eps": {"norm_eps": 1e-2},
    "norm_offset": {"norm_offset": 0.0},
    "pre_norms": {"pre_norms": False},
    "post_norms": {"post_norms": False},
    "embed_scale": {"embed_scale": 1.0},
    "residual_scale": {"residual_scale": 1.0},
    "logit_scale": {"logit_scale": 1.0},
    "logit_softcap": {"logit_softcap": None},
    "tied_head": {"tied_head": True},
}


def every_variant():
    """The config with one field changed: of the whole, of the attention, and of what the last layer has of its own."""
    last = CONFIG.attention.layers[-1]
    for name, change in _VARIANTS.items():
        yield name, CONFIG, dataclasses.replace(CONFIG, **change)
    for name, change in _ATTENTION_VARIANTS.items():
        yield f"attention.{name}", CONFIG, with_attention(**change)
    for name, change in _LAYER_VARIANTS.items():
        yield f"layer.{name}", CONFIG, with_last_layer(**change)
    for name, change in _ROTARY_VARIANTS.items():
        yield f"rotary.{name}", CONFIG, with_last_layer(rotary=dataclasses.replace(last.rotary, **change))
    for scaling, variants in _SCALING_VARIANTS.items():
        before = with_last_layer(rotary=Rotary(100.0, scaling))
        for name, change in variants.items():
            after = with_last_layer(rotary=Rotary(100.0, dataclasses.replace(scaling, **change)))
            yield f"{type(scaling).__name__}.{name}", before, after


def with_attention(**change):
    return dataclasses.replace(CONFIG, attention=dataclasses.replace(CONFIG.attention, **change))


def with_last_layer(**change):
    layers = CONFIG.attention.layers
    return with_attention(layers=(*layers[:-1], dataclasses.replace(layers[-1], **change)))


def test_variants_cover_every_field():
    for kind, variants in (
        (DecoderConfig, _VARIANTS),
        (AttentionConfig, _ATTENTION_VARIANTS),
        (LayerAttention, _LAYER_VARIANTS),
        (Rotary, _ROTARY_VARIANTS),
        *((type(scaling), variants) for scaling, variants in _SCALING_VARIANTS.items()),
    ):
        assert set(get_type_hints(kind)) == set(variants)


@pytest.mark.parametrize(("name", "before", "after"), [pytest.param(*each, id=each[0]) for each in every_variant()])
def test_every_field_changes_the_logits(name, before, after):
    before = run(before, random_params(before), TOKENS)
    after = run(after, random_params(after), TOKENS)
    assert np.isfinite(after).all()
    if name == "vocab_size":  # one more token: the scores of the others stay
        assert_same(after[..., :-1], before)
        assert after.shape[-1] == 51
    else:
        assert np.abs(after - before).max() > 1e-2


def test_activations_differ():
    exact = dataclasses.replace(CONFIG, activation="gelu")
    approximate = dataclasses.replace(CONFIG, activation="gelu_tanh")
    params = random_params(CONFIG)
    difference = np.abs(run(exact, params, TOKENS) - run(approximate, params, TOKENS)).max()
    assert 0 < difference < 0.1


def test_cache_gives_the_full_forward_pass():
    params, prompt = random_params(CONFIG), 9
    positions = jnp.broadcast_to(jnp.arange(24), TOKENS.shape)
    scores, cache = run_cached(
        params, TOKENS[:, :prompt], None, positions[:, :prompt], init_cache(CONFIG.attention, (2,), 30)
    )
    parts = [scores]
    for t in range(prompt, 24):
        scores, cache = run_cached(params, TOKENS[:, t : t + 1], None, positions[:, t : t + 1], cache)
        parts.append(scores)
    assert_same(jnp.concatenate(parts, axis=1), run(CONFIG, params, TOKENS))
    assert int(cache.slot) == 24


def test_cache_with_left_padding_gives_the_full_forward_pass():
    params, pad = random_params(CONFIG), 4
    tokens = jnp.pad(TOKENS, ((0, 0), (pad, 0)))
    segments = jnp.pad(jnp.ones_like(TOKENS), ((0, 0), (pad, 0)))
    positions = jnp.broadcast_to(jnp.maximum(jnp.arange(tokens.shape[1]) - pad, 0), tokens.shape)
    cache, parts = init_cache(CONFIG.attention, (2,), 40), []
    for part in (slice(0, 10), slice(10, 11), slice(11, 28)):
        scores, cache = run_cached(params, tokens[:, part], segments[:, part], positions[:, part], cache)
        parts.append(scores)
    assert_same(jnp.concatenate(parts, axis=1)[:, pad:], run(CONFIG, params, TOKENS))


def test_left_padding_changes_nothing():
    params, pad = random_params(CONFIG), 6
    tokens = jnp.pad(TOKENS, ((0, 0), (pad, 0)))
    segments = jnp.pad(jnp.ones_like(TOKENS), ((0, 0), (pad, 0)))
    positions = jnp.broadcast_to(jnp.maximum(jnp.arange(tokens.shape[1]) - pad, 0), tokens.shape)
    padded = run(CONFIG, params, tokens, None, segments, positions)
    assert np.isfinite(padded).all()
    assert_same(padded[:, pad:], run(CONFIG, params, TOKENS))


def test_packed_segments_are_separate_rows():
    params = random_params(CONFIG)
    packed = TOKENS.reshape(1, -1)
    segments = jnp.repeat(jnp.asarray([[2, 3]]), 24, axis=1)
    positions = jnp.tile(jnp.arange(24), 2)[None]
    scores = run(CONFIG, params, packed, None, segments, positions)
    assert_same(scores.reshape(2, 24, -1), run(CONFIG, params, TOKENS))


def test_long_rows_are_read_in_blocks_like_short_ones():
    """A row long enough for blocks, whose segments cross their borders, against the same segments in rows of 24."""
    params, count = random_params(CONFIG), -(-LONG_ROW // 24) // 2 * 2 + 2
    length = -(-24 * count // CAUSAL_BLOCKS) * CAUSAL_BLOCKS
    tokens = jnp.tile(TOKENS, (count // 2, 1))
    packed = jnp.pad(tokens.reshape(1, -1), ((0, 0), (0, length - 24 * count)))
    segments = jnp.pad(jnp.repeat(jnp.arange(2, 2 + count), 24)[None], ((0, 0), (0, length - 24 * count)))
    positions = jnp.tile(jnp.arange(24), length // 24 + 1)[None, :length]
    scores = run(CONFIG, params, packed, None, segments, positions)[0, : 24 * count]
    assert_same(scores.reshape(count, 24, -1), run(CONFIG, params, tokens))


def test_what_packed_segments_share_is_read_as_the_beginning_of_each():
    params = random_params(CONFIG)
    rows = TOKENS.at[1, :6].set(TOKENS[0, :6])
    packed = jnp.concatenate([rows[0], rows[1, 6:]])[None]
    segments = jnp.repeat(jnp.asarray([[1, 2, 3]]), jnp.asarray([6, 18, 18]), axis=1)
    positions = jnp.concatenate([jnp.arange(24), jnp.arange(6, 24)])[None]
    scores = run(CONFIG, params, packed, None, segments, positions)[0]
    expected = run(CONFIG, params, rows)
    assert_same(scores[:24], expected[0])
    assert_same(scores[24:], expected[1, 6:])


def random_adapter(seed: int) -> Adapter:
    spec = CONFIG.lora_spec(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), rank=4)
    keys = iter(jax.random.split(jax.random.key(seed), 15))
    return jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), init_adapter(next(keys), spec))


def test_a_model_in_bfloat16_multiplies_in_bfloat16_backwards_too():
    """JAX's own gradient of a product with float32 results would widen the operands."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(CONFIG))

    def loss(adapter):
        hidden, _ = Decoder(CONFIG, jnp.bfloat16).apply({"params": params}, TOKENS, adapter)
        return jnp.sum(jax.nn.logsumexp(logits(CONFIG, params, hidden), axis=-1))

    program = jax.jit(jax.grad(loss)).lower(random_adapter(0)).as_text()
    operands = re.findall(r"dot_general .*: \((.*)\) ->", program)
    assert operands
    assert not [types for types in operands if "xf32>" in types]


def test_adapter_batch_equals_each_adapter_alone_and_merged_weights():
    params = random_params(CONFIG)
    adapters = [random_adapter(seed) for seed in range(3)]
    tokens = jnp.stack([TOKENS, TOKENS + 1, TOKENS[::-1]]) % 50
    together = run(CONFIG, params, tokens, stack(adapters))
    for task, adapter in enumerate(adapters):
        assert_same(together[task], run(CONFIG, params, tokens[task], adapter))
        assert_same(together[task], run(CONFIG, merge(params, adapter), tokens[task]))
    assert np.abs(together[0] - run(CONFIG, params, tokens[0])).max() > 0.1
    assert_same(run(CONFIG, params, tokens[:, 0], stack(adapters)), together[:, 0])


def test_fresh_adapter_changes_nothing():
    params, spec = random_params(CONFIG), CONFIG.lora_spec()
    first, second = (run(CONFIG, params, TOKENS, init_adapter(jax.random.key(seed), spec)) for seed in range(2))
    assert (first == second).all()  # B = 0: whatever A is, nothing is added
    assert_same(first, run(CONFIG, params, TOKENS), tolerance=1e-5)  # another program, which may round differently


@pytest.mark.parametrize("kind", ["projections", "layer", "offload"])
def test_remat_keeps_values_and_gradients(kind):
    params, adapter = random_params(CONFIG), random_adapter(0)

    @partial(jax.jit, static_argnums=0)
    def value_and_grad(remat, adapter):
        def loss(adapter):
            hidden, _ = Decoder(CONFIG, remat=remat).apply({"params": params}, TOKENS, adapter)
            return jnp.mean(hidden**2)

        return jax.value_and_grad(loss)(adapter)

    jax.tree.map(partial(assert_same, tolerance=1e-5), value_and_grad(kind, adapter), value_and_grad("none", adapter))


def test_lora_dropout_acts_in_training_only():
    params, adapter = random_params(CONFIG), random_adapter(0)

    @partial(jax.jit, static_argnums=0)
    def scores(train):
        decoder = Decoder(CONFIG, lora_dropout=0.5, train=train)
        hidden, _ = decoder.apply({"params": params}, TOKENS, adapter, rngs={"dropout": jax.random.key(0)})
        return logits(CONFIG, params, hidden)

    plain = run(CONFIG, params, TOKENS, adapter)
    assert_same(scores(False), plain)
    assert np.abs(scores(True) - plain).max() > 1e-2


def test_adapters_of_another_base_are_refused():
    with pytest.raises(UserError, match=r"no projection qkv_proj: choose among q_proj"):
        CONFIG.lora_spec(("qkv_proj",))
    deeper = dataclasses.replace(CONFIG, num_layers=4)
    with pytest.raises(UserError, match="4 layers, the base model 3"):
        CONFIG.check_adapter(deeper.lora_spec())
    wider = dataclasses.replace(CONFIG, width=64)
    with pytest.raises(UserError, match=r"q_proj is 64 -> 32, the base model's 32 -> 32"):
        CONFIG.check_adapter(wider.lora_spec())


def test_rounded_products_stay_close_and_do_round():
    params = random_params(CONFIG)
    exact, rounded = (
        logits(CONFIG, params, Decoder(CONFIG, matmul_dtype=kind).apply({"params": params}, TOKENS)[0], kind)
        for kind in (None, jnp.bfloat16)
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    difference = float(jnp.abs(exact - rounded).max() / jnp.abs(exact).max())
    assert 1e-4 < difference < 5e-2  # bfloat16 keeps 8 bits
