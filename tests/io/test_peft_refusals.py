"""What a PEFT folder must not hold is named; what has no effect is passed over."""

import jax
import numpy as np
import peft
import pytest
from peft_reference import edit_tensors, merged_logits, random_adapter, rename, torch_logits, torch_model, write_config

from t2l_jax.errors import UserError
from t2l_jax.io.peft import load_peft, save_peft

# What transformers says of itself when peft asks.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


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
