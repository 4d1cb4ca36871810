"""Against the real `peft` in PyTorch, on a tiny random Llama that our own loader reads."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from t2l_jax.decoder import Decoder, logits
from t2l_jax.errors import UserError
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import PeftFormat, load_peft, save_peft
from t2l_jax.lora import PROJECTIONS, Adapter, stack

# What transformers says of itself when peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny random Llama, and our decoder's configuration and parameters of it."""
    folder = tmp_path_factory.mktemp("base")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder, *load_base(resolve(folder))


def torch_model(base):
    return transformers.LlamaForCausalLM.from_pretrained(base[0])


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.asarray(TOKENS)).logits.numpy()


@partial(jax.jit, static_argnums=0)
def our_logits(config, params, adapter=None):
    hidden, _ = Decoder(config).apply({"params": params}, jnp.asarray(TOKENS), adapter)
    return logits(config, params, hidden)


def deltas(adapter) -> dict[str, np.ndarray]:
    """What the adapter adds to each projection's kernel [L, i, o]."""
    scale, weights = adapter.spec.scale, jax.device_get(adapter.weights)
    return {name: scale * np.einsum("lri,lor->lio", w["a"], w["b"]) for name, w in weights.items()}


def merged_logits(base, adapter):
    """`our_logits` by way of the weights: compiled once for adapters of every spec."""
    _, config, params = base
    layers = dict(params["layers"])
    for name, delta in deltas(adapter).items():
        layers[name] = {"kernel": np.asarray(layers[name]["kernel"]) + delta}
    return our_logits(config, {**params, "layers": layers})


def random_adapter(spec, seed=0):
    """Unlike at the start of training, B is not zero."""
    rng = np.random.default_rng(seed)
    weights = {
        name: {side: 0.1 * rng.standard_normal(shape, np.float32) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    return Adapter(weights, spec)


def write_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("rslora", "rank", "names"),
    [
        (False, 8, ("q_proj", "v_proj")),
        (True, 1, ("q_proj", "v_proj")),
        (True, 8, tuple(PROJECTIONS)),
        (False, 1, tuple(PROJECTIONS)),
    ],
)
def test_peft_reads_ours(base, tmp_path, rslora, rank, names):
    _, config, params = base
    adapter = random_adapter(config.lora_spec(names, rank, alpha=16.0, rslora=rslora))
    save_peft(adapter, tmp_path / "out", base_model="org/tiny", description="Answer briefly.\n")
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "out"))
    ours = our_logits(config, params, adapter)
    assert np.abs(ours - our_logits(config, params)).max() > 0.1
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    assert (tmp_path / "out" / "description.txt").read_bytes() == b"Answer briefly.\n"
    again = deltas(load_peft(tmp_path / "out", config))
    for name, delta in deltas(adapter).items():
        np.testing.assert_allclose(again[name], delta, atol=1e-6)


def test_every_reader_sees_scale_one_and_whole_numbers(base, tmp_path):
    adapter = random_adapter(base[1].lora_spec(rank=8, alpha=16.0, rslora=True))  # the scale is 5.657
    save_peft(adapter, tmp_path / "out", base_model="org/tiny")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"], config["use_rslora"]) == (8, 8, False)
    assert isinstance(config["lora_alpha"], int)
    assert config["base_model_name_or_path"] == "org/tiny"
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    path = "base_model.model.model.layers.1.self_attn.q_proj"
    assert tensors[f"{path}.lora_A.weight"].shape == (8, 32)
    delta = tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
    np.testing.assert_allclose(delta.T, deltas(adapter)["q_proj"][1], atol=1e-5)
    assert not (tmp_path / "out" / "description.txt").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(base, tmp_path, dtype):
    adapter = random_adapter(base[1].lora_spec(tuple(PROJECTIONS), rank=3))
    save_peft(adapter, tmp_path / "out", dtype=dtype)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), tmp_path / "out"))
    ours = merged_logits(base, load_peft(tmp_path / "out", base[1]))
    np.testing.assert_allclose(theirs, ours, atol=2e-5)
    np.testing.assert_allclose(ours, merged_logits(base, adapter), atol=0.3)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert size == PeftFormat(adapter.spec, dtype=dtype).num_bytes


def test_a_batch_is_one_folder_each(base, tmp_path):
    spec = base[1].lora_spec(rank=2)
    adapters = [random_adapter(spec, seed) for seed in range(3)]
    save_peft(stack(adapters), tmp_path / "out", description=["a", "b", "c"])
    save_peft(stack(adapters), tmp_path / "named", names=["x", "y", "z"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000", "0001", "0002"]
    assert (tmp_path / "out" / "0002" / "description.txt").read_text() == "c"
    for index, name in enumerate("xyz"):
        read = load_peft(tmp_path / "named" / name)
        for name, delta in deltas(adapters[index]).items():
            np.testing.assert_allclose(deltas(read)[name], delta, atol=1e-6)


def test_saving_refuses(base, tmp_path):
    adapter = random_adapter(base[1].lora_spec(rank=2))
    batch = stack([adapter, adapter])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="exists already"):
        save_peft(adapter, tmp_path / "mine")
    with pytest.raises(UserError, match="path separator"):
        save_peft(batch, tmp_path / "out", names=["a", "../b"])
    with pytest.raises(UserError, match="2 adapters need"):
        save_peft(batch, tmp_path / "out", names=["a", "a"])
    with pytest.raises(UserError, match="2 adapters need"):
        save_peft(batch, tmp_path / "out", description=["a"])
    with pytest.raises(UserError, match="no names"):
        save_peft(adapter, tmp_path / "out", names=["a"])
    with pytest.raises(UserError, match="one batch axis"):
        save_peft(stack([batch]), tmp_path / "out")
    with pytest.raises(UserError, match="not 'int8'"):
        save_peft(adapter, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match="do not fit"):
        save_peft(adapter.replace(spec=base[1].lora_spec(rank=3)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": list(PROJECTIONS)},
        {"r": 4, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 6.5, "target_modules": r".*layers\.[02]\.(self_attn\.k_proj|mlp\.up_proj)"},
        {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
        {
            "r": 4,
            "lora_alpha": 12,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"q_proj": 2, r"model.layers.1.self_attn.v_proj": 7},
            "alpha_pattern": {"gate_proj": 3, r"layers\.[01]\.self_attn\.q_proj": 5},
        },
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"_proj": 3, "v_proj": 5}},
        {"r": 4, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"^model.layers.2.self_attn.q_proj": 32}},
    ],
    ids=["all", "rslora", "regex", "one-layer", "patterns", "partial-name", "alpha-only"],
)
def test_we_read_theirs(base, tmp_path, options):
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="gaussian", **options)
    model = peft.get_peft_model(torch_model(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path, base[1])
    ours = merged_logits(base, adapter)
    assert np.abs(ours - our_logits(*base[1:])).max() > 0.01
    np.testing.assert_allclose(ours, torch_logits(model), atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.v_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*\.v_proj"},
    ],
)
def test_tensors_that_peft_leaves_aside_are_refused(base, folder, options):
    """PEFT ignores them without a word: one of the two files is another adapter's."""
    write_config(folder, **options)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors adapts .*_proj, adapter_config\.json does not"):
        load_peft(folder, base[1])
    modules = AdapterConfig.read(folder / "adapter_config.json")

    def drop(tensors):
        for name in [
            name for name in tensors if not modules.adapts(name.split(".lora_")[0][len("base_model.model.") :])
        ]:
            del tensors[name]

    edit_tensors(folder, drop)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), folder))
    np.testing.assert_allclose(merged_logits(base, load_peft(folder, base[1])), theirs, atol=2e-5)


def test_names_with_the_adapters_name_are_those_of_peft(base, folder):
    plain = merged_logits(base, load_peft(folder, base[1]))

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    edit_tensors(folder, rename)
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), folder))
    np.testing.assert_allclose(plain, theirs, atol=2e-5)
    np.testing.assert_array_equal(merged_logits(base, load_peft(folder, base[1])), plain)


def test_uniform_ranks_keep_weights_and_scale(base, tmp_path):
    model = peft.get_peft_model(torch_model(base), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path)
    assert adapter.spec == base[1].lora_spec(("v_proj",), rank=2, alpha=3.0, rslora=False)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        adapter.weights["v_proj"]["a"][2], tensors["base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"]
    )


@pytest.fixture
def folder(base, tmp_path):
    save_peft(random_adapter(base[1].lora_spec(rank=2)), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("lora_bias", True),
        ("trainable_token_indices", [1]),
        ("fan_in_fan_out", True),
        ("peft_type", "IA3"),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa"),
        ("use_qalora", True),
        ("use_magic_of_next_year", {"strength": 1}),
        ("r", "8"),
        ("lora_alpha", None),
        ("alpha_pattern", {"q_proj": True}),
        ("rank_pattern", [1]),
        ("rank_pattern", {"(": 1}),
    ],
)
def test_options_that_we_do_not_honour_are_named(base, folder, option, value):
    write_config(folder, **{option: value})
    with pytest.raises(UserError, match=option):
        load_peft(folder, base[1])


def test_options_of_no_effect_change_nothing(base, folder):
    before = load_peft(folder, base[1])
    write_config(folder, use_magic_of_next_year=None, lora_dropout=0.1, init_lora_weights="eva", inference_mode=False)
    after = load_peft(folder, base[1])
    assert after.spec == before.spec
    jax.tree.map(np.testing.assert_array_equal, after, before)


def edit_tensors(folder, edit):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def rename(tensors, old, new):
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": np.zeros((2, 2))}), "lm_head"),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((2, 2))}),
            "embed_tokens",
        ),
        (lambda t: t.update({f"{Q0}.lora_magnitude_vector": np.zeros(2)}), "lora_magnitude_vector"),
        (lambda t: t.update({f"{Q0}.lora_B.bias": np.zeros(2)}), "bias"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((2, 32), np.int8)}), "I8"),
        (lambda t: t.pop(f"{Q0}.lora_A.weight"), "lacks one of A and B"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((3, 32))}), "ranks differ"),
        (
            lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((3, 32)), f"{Q0}.lora_B.weight": np.zeros((32, 3))}),
            "has rank 3, adapter_config.json says 2",
        ),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.zeros((2, 31))}), "widths"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: rename(t, Q0, Q0.replace("self_attn", "mlp")), "mlp.q_proj.*is not supported"),
        (lambda t: rename(t, "layers.0", "layers.00"), "layers.00.*is not supported"),
        (lambda t: rename(t, "model.model.model", "model.model"), "is not supported"),
        (lambda t: rename(t, ".weight", ".other.weight"), "other.weight' is not supported"),
        (lambda t: t.update({f"{Q0}.lora_A.default.weight": np.zeros((2, 32))}), "comes twice, with `.default`"),
        (lambda t: t[f"{Q0}.lora_A.weight"].__setitem__((1, 3), np.nan), "lora_A.weight is not finite"),
        (lambda t: t[f"{Q0}.lora_B.weight"].__setitem__((3, 1), -np.inf), "lora_B.weight is not finite"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": np.full((2, 32), 1e300)}), "or too large for float32"),
        (lambda t: rename(t, "layers.2", "layers.20000000"), "layer 20000000, and 19999998 layers below are missing"),
        (lambda t: rename(t, "layers.0", "layers.4"), "layer 4, and 2 layers below are missing"),
    ],
)
def test_tensors_that_do_not_fit(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(UserError, match=message):
        load_peft(folder)


def test_an_adapter_of_another_base(base, folder, tmp_path):
    other = base[1].__class__(**{**vars(base[1]), "num_layers": 2})
    with pytest.raises(UserError, match="layer 2, the base model has 2 layers"):
        load_peft(folder, other)
    wider = base[1].__class__(**{**vars(base[1]), "width": 64})
    with pytest.raises(UserError, match="q_proj is 32 -> 32, the base model's 64 -> 32"):
        load_peft(folder, wider)


def test_a_sparse_adapter_needs_its_base(base, folder):
    edit_tensors(folder, lambda t: [t.pop(name) for name in list(t) if "layers.1." not in name])
    write_config(folder, layers_to_transform=1)
    with pytest.raises(UserError, match="layer 1, and 1 layers below are missing: name its base model"):
        load_peft(folder)
    adapter = load_peft(folder, base[1])
    assert adapter.spec.num_layers == 3
    theirs = torch_logits(peft.PeftModel.from_pretrained(torch_model(base), folder))
    np.testing.assert_allclose(merged_logits(base, adapter), theirs, atol=2e-5)


def test_numbers_that_leave_float32_are_neither_read_nor_written(base, folder, tmp_path):
    write_config(folder, lora_alpha=1e30, alpha_pattern={"q_proj": 1})
    edit_tensors(folder, lambda t: t[f"{Q0.replace('q_proj', 'v_proj')}.lora_B.weight"].__setitem__((0, 0), 1e30))
    with pytest.raises(UserError, match="layer 0's v_proj is too large for float32 with alpha"):
        load_peft(folder, base[1])
    adapter = random_adapter(base[1].lora_spec(rank=2))
    adapter.weights["v_proj"]["b"][0, 0, 0] = 7e4
    for dtype, value in (("float16", 7e4), ("float32", np.nan)):
        adapter.weights["v_proj"]["b"][0, 0, 0] = value
        with pytest.raises(UserError, match=f"the weights of v_proj are not finite, or too large for {dtype}"):
            save_peft(adapter, tmp_path / "new", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ranks_that_would_fill_the_memory_are_refused(folder):
    """Padded to the rank of q_proj, up_proj would have 3 * 20,000 * (2 + 20,000) numbers."""
    shapes = {"self_attn.q_proj": (20_000, 1, 1), "mlp.up_proj": (1, 2, 20_000)}

    def grow(tensors):
        tensors.clear()
        for layer in range(3):
            for path, (rank, d_in, d_out) in shapes.items():
                place = f"base_model.model.model.layers.{layer}.{path}"
                tensors[f"{place}.lora_A.weight"] = np.zeros((rank, d_in), np.float16)
                tensors[f"{place}.lora_B.weight"] = np.zeros((d_out, rank), np.float16)

    edit_tensors(folder, grow)
    write_config(folder, r=1, rank_pattern={"q_proj": 20_000}, target_modules=["q_proj", "up_proj"])
    with pytest.raises(
        UserError, match=r"has ranks up to 20000, with which 180,006 numbers would become 1,200,240,000"
    ):
        load_peft(folder)


def test_damaged_files(folder):
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged or cut short"):
            load_peft(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read: No such file"):
        load_peft(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="a pickle, is not read"):
        load_peft(folder)
    config.write_text('{"r": ')
    with pytest.raises(UserError, match=r"adapter_config\.json: not JSON"):
        load_peft(folder)
    config.unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read: No such file"):
        load_peft(folder)
