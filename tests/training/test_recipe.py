"""What a recipe refuses when it is made, and how it says a step is computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from t2l_jax.data.batches import BatchConfig
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import LONG_ROW, AttentionConfig, LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training.recipe import ComputeConfig, Recipe

CONFIG = DecoderConfig(8, 4, 1, 4, AttentionConfig(1, 1, 4, layers=(LayerAttention(),)))


@pytest.mark.parametrize(
    ("precision", "dtype", "narrow"),
    [("auto", "float32", None), ("float32", "float32", None), ("bf16-matmul", "float32", "bfloat16"),
     ("bfloat16", "bfloat16", None)],
)  # fmt: skip
def test_precision_is_that_of_the_base_model(precision, dtype, narrow):
    """On this CPU `auto` is float32."""
    compute = ComputeConfig(precision, remat="none")
    decoder = compute.decoder(CONFIG)
    assert (jnp.dtype(compute.base_dtype()), jnp.dtype(decoder.dtype), decoder.remat) == (dtype, dtype, "none")
    assert decoder.matmul_dtype == (None if narrow is None else jnp.dtype(narrow))


def test_on_accelerators_auto_is_bfloat16_and_short_rows_attend_whole(monkeypatch):
    on_cpu = ComputeConfig().decoder(CONFIG).long_row
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert jnp.dtype(ComputeConfig().base_dtype()) == "bfloat16"
    assert on_cpu == LONG_ROW < ComputeConfig().decoder(CONFIG).long_row


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(UserError, match="a batch of 2 tasks cannot be cut into 3 equal parts"):
        ComputeConfig(accumulate=3).together(2)
    assert ComputeConfig(accumulate=2).together(8) == 4


@pytest.mark.parametrize(
    ("offset", "changes", "message"),
    [
        (
            "none",
            {"trainee": "lora"},
            "recipe: field trainee: must be 'hypernet', 'one-hot', 'instance', .* or 'oracles-seeds', got 'lora'",
        ),
        ("none", {"trainee": "one-hot", "init_from": "x"}, "init_from: one-hot begins with fresh weights; only"),
        ("frozen", {}, "hypernet.offset is frozen: name the adapter with offset_init"),
        ("none", {"offset_init": "x"}, "offset_init: hypernet.offset is none: make it frozen or learned"),
        ("learned", {"offset_init": "x", "init_from": "y"}, "offset_init: the model of init_from has an offset"),
        (
            "learned",
            {"offset_init": "x", "hypernet": HypernetConfig(init="reconstruction", offset="learned")},
            "offset_init: with hypernet.init reconstruction",
        ),
        ("learned", {"offset_init": "x", "trainee": "multitask"}, "offset_init: multitask has no offset"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(offset, changes, message):
    with pytest.raises(UserError, match=message):
        replace(Recipe(), **{"hypernet": HypernetConfig(offset=offset), **changes})


@pytest.mark.parametrize(
    ("platform", "batch", "attention", "expected"),
    [
        ("cpu", BatchConfig(shared_prefix=False), "auto", "scores"),
        ("tpu", BatchConfig(), "auto", "scores"),
        ("tpu", BatchConfig(shared_prefix=False), "auto", "splash"),
        ("tpu", BatchConfig(packing=False), "auto", "splash"),
        ("tpu", BatchConfig(packing=False), "scores", "scores"),
    ],
)
def test_rows_without_a_shared_prefix_take_the_kernel_on_tpus(monkeypatch, platform, batch, attention, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert Recipe(batch=batch, compute=ComputeConfig(attention=attention)).decoder(CONFIG).attention == expected


def test_a_kernel_that_cannot_be_used_is_refused():
    splash = ComputeConfig(attention="splash")
    with pytest.raises(UserError, match=r"share a prefix: add --batch\.no-shared-prefix"):
        Recipe(compute=splash)
    with pytest.raises(UserError, match=r"multiple of 128 tokens, batch\.length is 200"):
        Recipe(compute=splash, batch=BatchConfig(length=200, shared_prefix=False))
    with pytest.raises(UserError, match="splash is a kernel for TPUs, these devices are cpu"):
        Recipe(compute=splash, batch=BatchConfig(shared_prefix=False)).decoder(CONFIG)
    with pytest.raises(UserError, match="cudnn is a kernel for GPUs, these devices are cpu"):
        Recipe(compute=ComputeConfig(attention="cudnn")).decoder(CONFIG)


def test_cudnn_is_used_where_it_is_asked_for_and_can_run(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cudnn, base = ComputeConfig(attention="cudnn"), replace(CONFIG, attention=replace(CONFIG.attention, head_dim=8))
    assert cudnn.decoder(base).attention == "cudnn"
    assert ComputeConfig().decoder(base).attention == "scores"
    with pytest.raises(UserError, match=r"cudnn knows no bf16-matmul: use --compute\.precision bfloat16"):
        replace(cudnn, precision="bf16-matmul").decoder(base)
    capped = replace(base, attention=replace(base.attention, softcap=30.0))
    with pytest.raises(UserError, match="cudnn knows no soft caps"):
        cudnn.decoder(capped)
    for width in (12, 256):
        heads = replace(base, attention=replace(base.attention, head_dim=width))
        with pytest.raises(UserError, match=rf"multiple of 8, at most 128, this base model has {width}: use scores"):
            cudnn.decoder(heads)
