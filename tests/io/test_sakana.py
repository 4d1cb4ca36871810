"""Checkpoints of the original Text-to-LoRA: the same adapters, both ways; what has no equal here is refused by name."""

from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from command_line import assert_refused, run
from safetensors.numpy import load_file
from sakana_files import BASE, ORDER, RANK, TASKS, VARIANTS, args_of, assert_same_adapters, random_state, save
from tiny_published import snapshot

import t2l_jax
from t2l_jax.encoder.last_token import PREFIX
from t2l_jax.encoder.load import SHORT_NAMES
from t2l_jax.errors import UserError
from t2l_jax.evaluation.weights import find_baselines
from t2l_jax.io import sakana
from t2l_jax.io.published import load_model
from t2l_jax.io.sakana import import_sakana
from t2l_jax.io.sakana_export import export_sakana
from t2l_jax.lora import PROJECTIONS


@pytest.mark.parametrize("variant", VARIANTS)
def test_import_and_export_give_the_same_adapters(variant, tmp_path):
    args = args_of(variant)
    state = random_state(args)
    config = import_sakana(save(tmp_path / "theirs", args, state), tmp_path / "ours")
    one_hot = args["use_one_hot_task_emb"]
    model = t2l_jax.load(tmp_path / "ours" / "model" if one_hot else tmp_path / "ours")
    assert model.config == config
    assert_same_adapters(model, args, state)
    export_sakana(tmp_path / "ours", tmp_path / "back")
    again = torch.load(tmp_path / "back" / "hypermod.pt", weights_only=True)
    assert sorted(again) == sorted(state)
    names = [name for name in PROJECTIONS if name in ORDER]
    assert list(again) == list(random_state(args, tuple(names)))
    for key, tensor in state.items():
        if key == "layer_type_encoder.0.weight":
            tensor = tensor[[ORDER.index(name) for name in names]]
        if key.startswith("heads.") and "delta W" in variant:
            tensor = tensor * torch.tensor(1e-2)
        torch.testing.assert_close(again[key], tensor, rtol=1e-6, atol=0)
    found = import_sakana(tmp_path / "back", tmp_path / "again")
    assert found == config
    first, second = (load_model(next(tmp_path.glob(f"{name}/**/config.json")).parent)[1] for name in ("ours", "again"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_is_published(tmp_path):
    args = args_of("L")
    state = random_state(args)
    config = import_sakana(save(tmp_path / "theirs", args, state), tmp_path / "ours")
    assert config.encoder == "hf:Alibaba-NLP/gte-large-en-v1.5" == SHORT_NAMES["gte-large"]
    assert (config.base, config.base_name, config.prompt) == (f"hf:{BASE}", BASE, "definition")
    assert config.lora.names == ("q_proj", "v_proj", "down_proj")
    assert (config.lora.num_layers, config.lora.rank, config.lora.scale) == (2, RANK, 4 / RANK**0.5)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(stored["params/task/linear/kernel"], state["task_encoder.mlp.0.weight"].T)
    assert "SakanaAI/text-to-lora" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize(("rslora", "scale"), [(True, 6 / RANK**0.5), (False, 6 / RANK)])
def test_the_scale_is_that_of_the_adapters_configuration(rslora, scale, tmp_path):
    folder = save(tmp_path / "theirs", args_of("L"), random_state(args_of("L")), lora_alpha=6, use_rslora=rslora)
    assert import_sakana(folder, tmp_path / "ours").lora.scale == pytest.approx(scale)


def test_modules_stand_in_the_order_of_the_heads(tmp_path):
    """Not of target_modules, in args.yaml or in adapter_config.json, and not of the offsets."""
    args, other = args_of("M"), ("down_proj", "q_proj", "v_proj")
    state = random_state(args, other)
    import_sakana(save(tmp_path / "theirs", args, state), tmp_path / "ours")
    model = t2l_jax.load(tmp_path / "ours")
    assert_same_adapters(model, args, state, other)
    with pytest.raises(AssertionError):
        assert_same_adapters(model, args, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32(dtype, tmp_path):
    args = args_of("S")
    state = OrderedDict((key, tensor.to(dtype)) for key, tensor in random_state(args).items())
    import_sakana(save(tmp_path / "theirs", args, state), tmp_path / "ours")
    assert_same_adapters(t2l_jax.load(tmp_path / "ours"), args, state)


def test_a_checkpoint_of_a_run(tmp_path, monkeypatch):
    """Its other files lie two levels up; also where the path is relative."""
    args = args_of("L")
    best, state = random_state(args), random_state(args, seed=1)
    run_folder = save(tmp_path / "theirs", args, best)
    step = run_folder / "checkpoints" / "it_10"
    step.mkdir(parents=True)
    torch.save(state, step / "hypermod.pt")
    import_sakana(step, tmp_path / "ours")
    assert_same_adapters(t2l_jax.load(tmp_path / "ours"), args, state)
    monkeypatch.chdir(step)
    import_sakana(Path(), tmp_path / "relative")
    assert load_model(tmp_path / "relative")[0] == load_model(tmp_path / "ours")[0]


def test_one_hot_identities_are_read_by_an_evaluation(tmp_path):
    args = args_of("L, one-hot")
    import_sakana(save(tmp_path / "theirs", args, random_state(args)), tmp_path / "ours")
    one_hot = find_baselines(None, None, tmp_path / "ours").one_hot
    assert one_hot.tasks == tuple(TASKS)  # after n_train_ds
    assert (one_hot.model.config.encoder, one_hot.model.config.reads) == (None, "identity")
    with pytest.raises(UserError, match=r"give its run folder, whose .* names them"):
        export_sakana(tmp_path / "ours" / "model", tmp_path / "back")


@pytest.mark.parametrize("given", ["", None])
def test_without_a_text_encoder_the_base_model_embeds(given, tmp_path):
    args = args_of("L", emb_model=given)
    folder = save(tmp_path / "theirs", args, random_state(args))
    assert import_sakana(folder, tmp_path / "ours").encoder == f"{PREFIX}hf:{BASE}"
    export_sakana(tmp_path / "ours", tmp_path / "back")
    assert import_sakana(tmp_path / "back", tmp_path / "again").encoder == f"{PREFIX}hf:{BASE}"


def test_a_local_base_model_stays_where_it_is(tmp_path):
    (tmp_path / "base").mkdir()
    args = args_of("L", model_dir=str(tmp_path / "base"))
    config = import_sakana(save(tmp_path / "theirs", args, random_state(args)), tmp_path / "ours")
    assert (config.base, config.base_name) == (str(tmp_path / "base"), BASE)


def refused(tmp_path, message, args, state, **adapter):
    folder = save(tmp_path / "theirs", args, state, **adapter)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        import_sakana(folder, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoreg_gen": True}, "args.yaml: autoreg_gen without shared_AB_head: .* not imported"),
        ({"training_task": "recon"}, "args.yaml: pred_z_score with factorized false: the original cannot generate"),
        ({"emb_model": "Salesforce/SFR-Embedding-2_R"}, "field emb_model is 'Salesforce/SFR-Embedding-2_R'"),
        ({"emb_model": "thenlper/gte-large"}, "field emb_model is 'thenlper/gte-large'"),
        ({"hypernet_latent_size": 10}, "args.yaml: field hypernet_latent_size: .*multiple of 4"),
        ({"hypernet_latent_size": 2**21}, "args.yaml: field hypernet_latent_size"),
        ({"hypernet_latent_size": 16}, r"hypermod.pt: tensor \S+ is .*; by args.yaml"),
        ({"hypernet_latent_size": "8"}, "args.yaml: field hypernet_latent_size"),
        ({"shared_AB_head": "yes"}, "args.yaml: field shared_AB_head"),
        ({"shared_AB_head": True}, "is missing; by args.yaml"),
        ({"mt_lora_path": "runs/mt"}, "heads.v_proj.bias is .* must not be there"),
        ({"training_task": "dpo"}, "args.yaml: field training_task"),
        ({"model_dir": "no folder"}, "field model_dir is 'no folder', no folder and no name on the hub"),
        ({"model_dir": "org/other"}, "args.yaml is for org/other, adapter_config.json for org/gemma"),
        ({"target_modules": ["q_proj"]}, r"args.yaml: field target_modules is \('q_proj',\), the heads .* v_proj"),
        ({"use_one_hot_task_emb": True, "n_train_ds": 3}, "train_ds_names has 3 tasks, hypermod.pt reads 5 one-hot"),
        ({"use_one_hot_task_emb": True, "train_ds_names": ["a"] * 5}, "train_ds_names has 1 tasks"),
        ({"delta_w_scaling": 0}, "args.yaml: field delta_w_scaling"),
    ],
)  # fmt: skip
def test_flags_that_have_no_equal_here(changes, message, tmp_path):
    refused(tmp_path, message, args_of("L", **changes), random_state(args_of("L")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "adapter_config.json: the option 'use_dora' = True is not supported"),
        ({"bias": "all"}, "adapter_config.json: the option 'bias'"),
        ({"rank_pattern": {"q_proj": 4}}, "adapter_config.json: the option rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "adapter_config.json: the option alpha_pattern"),
        ({"layers_to_transform": [0]}, "adapter_config.json: the option layers_to_transform"),
        ({"r": 4}, f"hypermod.pt: its adapters have rank {RANK}, .*adapter_config.json says r = 4"),
        ({"lora_alpha": 0}, "adapter_config.json: field lora_alpha must be above 0"),
        ({"target_modules": ["q_proj", "v_proj"]}, "adapter_config.json: field target_modules is .* different models"),
        ({"target_modules": "all-linear"}, "adapter_config.json: field target_modules is 'all-linear'"),
        ({"peft_type": "VERA"}, "adapter_config.json: peft_type is 'VERA'"),
    ],
)  # fmt: skip
def test_adapter_options_that_are_not_supported(changes, message, tmp_path):
    refused(tmp_path, message, args_of("L"), random_state(args_of("L")), **changes)


def changed(**changes):
    """A state dict of M with some tensors replaced, or left out if None."""
    state = random_state(args_of("M"))
    for key, tensor in changes.items():
        state[key.replace("__", ".")] = tensor
    return OrderedDict((key, tensor) for key, tensor in state.items() if tensor is not None)


def sorted_state():
    return OrderedDict(sorted(changed().items()))


def swapped_heads():
    state = changed()
    heads = [key for key in state if key.startswith("heads.v_proj")]
    for key in heads:
        state.move_to_end(key)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: changed(mlp1__mlp__4__bias=None), "tensor mlp1.mlp.4.bias is missing"),
        (lambda: changed(task_encoder__mlp__0__weight=None), "holds no task encoder"),
        (lambda: changed(AB_offset__A__q_proj=None), "AB_offset.A.q_proj and AB_offset.B.q_proj must be"),
        (lambda: changed(AB_offset__A__q_proj=torch.zeros(0, RANK, 8)), "AB_offset.A.q_proj and .* must be"),
        (lambda: changed(AB_offset__A__q_proj=torch.zeros(3, RANK, 8)), r"AB_offset.\S+ is \(.*must be"),
        (lambda: changed(layer_depth_encoder__0__weight=torch.zeros(3, 2)), "layer_depth_encoder.0.weight is"),
        (lambda: changed(out_emb__q_proj__B=torch.zeros(9)), r"out_emb.q_proj.B is \(9,\)"),
        (lambda: changed(mixer__1__bias=torch.full((32,), float("nan"))), "tensor 'mixer.1.bias' is not finite"),
        (lambda: changed(mixer__1__bias=torch.full((32,), float("inf"))), "tensor 'mixer.1.bias' is not finite"),
        (lambda: changed(mixer__1__bias=torch.zeros(32).double()), "names 'torch DoubleStorage'"),
        (lambda: changed(mixer__1__bias=torch.zeros(32).long()), "names 'torch LongStorage'"),
        (lambda: changed(mixer__1__bias=3.0), "'mixer.1.bias' is no plain tensor but float"),
        (lambda: changed(mixer__1__bias=torch.zeros(1).expand(2**40)), "tensors are larger than the file"),
        (sorted_state, "were put in another order, so which row of layer_type_encoder.0.weight"),
        (swapped_heads, "the modules of heads are down_proj, q_proj, v_proj, those of out_emb v_proj, down_proj"),
        (OrderedDict, "expected a state dict"),
        (lambda: [torch.zeros(2)], "expected a state dict"),
        (lambda: {"x": torch.zeros(2)}, "holds no heads"),
        (lambda: {"heads.qkv_proj.weight": torch.zeros(2, 2)}, "adapts qkv_proj, only q_proj, k_proj"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(state, message, tmp_path):
    refused(tmp_path, message, args_of("M"), state())


@pytest.mark.parametrize("key", ["embed", "mlp.3.weight"])
def test_task_encoders_of_other_scripts(key, tmp_path):
    """Told by their keys: a run with the flag `encoder_type: vq` has the linear encoder."""
    state = random_state(args_of("L"))
    state[f"task_encoder.{key}"] = torch.zeros(32, 4)
    refused(tmp_path, f"holds task_encoder.{key}: a discrete, vq or softmax task encoder", args_of("L"), state)


@pytest.mark.parametrize("name", ["hypermod.pt", "args.yaml", "adapter_config.json"])
def test_a_file_that_is_missing(name, tmp_path):
    folder = save(tmp_path / "theirs", args_of("L"), random_state(args_of("L")))
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        import_sakana(folder, tmp_path / "ours")


def test_code_in_the_flags_does_not_run(tmp_path):
    folder = save(tmp_path / "theirs", args_of("L"), random_state(args_of("L")))
    (folder / "args.yaml").write_text(f"seed: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'marker'}]\n")
    with pytest.raises(UserError, match=r"args\.yaml: line 1: not YAML without tags"):
        import_sakana(folder, tmp_path / "ours")
    assert not (tmp_path / "marker").exists()


def test_commands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("theirs"), args_of("L"), random_state(args_of("L")))
    assert run(capsys, "import", "theirs", "--out", "ours")[:2] == (0, f"hypernetwork for {BASE} written to ours\n")
    assert run(capsys, "export", "ours", "--format", "sakana", "--out", "back")[0] == 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["adapter_config.json", "args.yaml", "hypermod.pt"]
    assert_refused(capsys, "ours exists already and is not overwritten", "import", "theirs", "--out", "ours")
    assert_refused(capsys, "back exists already and is not overwritten", "export", "ours", "--out", "back")
    assert_refused(capsys, "no/args.yaml cannot be read", "import", "no", "--out", "new")


def test_the_prefix_of_the_encoder_is_its_own():
    assert sakana.LAST_TOKEN == PREFIX
