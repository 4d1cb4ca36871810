"""Libraries of adapters: what is packed, what is left out, what is refused."""

import json
from contextlib import contextmanager
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_library import NAMES, SPEC, deltas, random_adapters, save_library

from t2l_jax.errors import UserError
from t2l_jax.io import library as module
from t2l_jax.io.files import locked
from t2l_jax.io.library import canonical_factors, open_library
from t2l_jax.io.peft import save_peft
from t2l_jax.lora import Adapter


def opened(folder, tmp_path, **changes):
    return open_library(folder, tmp_path / "cache", **{"alpha": 16.0, "rslora": True, **changes})


def test_a_batch_has_the_adapters_deltas_at_the_scale_that_is_asked_for(tmp_path):
    adapters = random_adapters(5)
    library = opened(save_library(tmp_path / "library", adapters), tmp_path)
    assert [entry.name for entry in library.entries] == sorted(NAMES)
    assert library.entries[0].descriptions == ("say alpha", "answer with alpha")
    assert library.spec == replace(SPEC, alpha=16.0, rslora=True)
    batch = library[np.asarray([3, 0])]  # epsilon, alpha
    for place, index in enumerate((3, 0)):
        written = deltas(adapters[NAMES.index(library.entries[index].name)])
        for name, delta in deltas(jax.tree.map(lambda leaf, place=place: leaf[place], batch)).items():
            np.testing.assert_allclose(delta, written[name], rtol=1e-5, atol=1e-8)


def test_a_library_is_packed_once_and_anew_where_it_changed(tmp_path, monkeypatch):
    folder = save_library(tmp_path / "library")
    first = opened(folder, tmp_path)
    monkeypatch.setattr(module, "_pack", lambda *_: pytest.fail("packed again"))
    assert opened(folder, tmp_path).digest == first.digest
    monkeypatch.undo()
    save_peft(random_adapters(1, seed=9)[0], folder / "beta", base_model="org/tiny", replace=True)
    second = opened(folder, tmp_path)
    assert second.digest != first.digest
    assert not np.array_equal(second[[1]].weights["q_proj"]["a"], first[[1]].weights["q_proj"]["a"])


def test_a_run_that_waited_for_another_takes_what_that_has_packed(tmp_path, monkeypatch):
    folder = save_library(tmp_path / "library")
    pack, packed = module._pack, []

    def counted(library, *rest):
        packed.append(library.digest)
        pack(library, *rest)

    @contextmanager
    def waited(cache, *, wait):
        assert wait
        monkeypatch.setattr(module, "locked", locked)
        opened(folder, tmp_path)  # the other run
        with locked(cache, wait=wait):
            yield

    monkeypatch.setattr(module, "_pack", counted)
    monkeypatch.setattr(module, "locked", waited)
    library = opened(folder, tmp_path)
    assert packed == [library.digest]
    assert len(library[:]) == 5


def test_statistics_are_those_of_a_sample(tmp_path):
    library = opened(save_library(tmp_path / "library"), tmp_path)
    mean, std = library.statistics()
    everything = library[:]
    for name, pair in everything.weights.items():
        for side, values in pair.items():
            np.testing.assert_allclose(mean.weights[name][side], values.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(std.weights[name][side], values.std(0, ddof=1, dtype=np.float64), rtol=1e-5)


def test_canonical_factors_are_the_same_for_all_factors_of_a_delta(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 2, 6)), rng.standard_normal((3, 5, 2))
    mix = rng.standard_normal((3, 2, 2))
    first = canonical_factors(a, b)
    second = canonical_factors(mix @ a, b @ np.linalg.inv(mix))
    np.testing.assert_allclose(first[1] @ first[0], b @ a, atol=1e-12)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)
    u, s, _ = np.linalg.svd(b @ a)
    sizes = np.linalg.norm(first[1], axis=1)
    np.testing.assert_allclose(sizes, np.sqrt(s[:, :2]), atol=1e-12)
    np.testing.assert_allclose(np.abs(first[1] / sizes[:, None]), np.abs(u[:, :, :2]), atol=1e-10)
    narrow = canonical_factors(rng.standard_normal((3, 4, 6)), rng.standard_normal((3, 2, 4)))  # rank 4, width 2
    assert not narrow[0][:, 2:].any()
    assert not narrow[1][:, :, 2:].any()
    library = opened(save_library(tmp_path / "library"), tmp_path, canonical=True)
    packed, plain = library[[0]], opened(tmp_path / "library", tmp_path)[[0]]
    for name, delta in deltas(packed).items():
        np.testing.assert_allclose(delta, deltas(plain)[name], atol=1e-6)
        assert not np.allclose(packed.weights[name]["a"], plain.weights[name]["a"])


def _other_rank(folder):
    save_peft(random_adapters(1, spec=replace(SPEC, rank=1))[0], folder, base_model="org/tiny", replace=True)


def _other_modules(folder):
    spec = replace(SPEC, modules=SPEC.modules[:1])
    save_peft(random_adapters(1, spec=spec)[0], folder, base_model="org/tiny", replace=True)


def _other_base(folder):
    save_peft(random_adapters(1)[0], folder, base_model="org/other", replace=True)


def _nan(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, path)


def _infinite(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = np.inf
    save_file(tensors, path)


def _cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _untrained(folder):
    adapter = random_adapters(1)[0]
    weights = {name: {"a": pair["a"], "b": 0 * pair["b"]} for name, pair in adapter.weights.items()}
    save_peft(Adapter(weights, SPEC), folder, base_model="org/tiny", replace=True)


def _no_json(folder):
    (folder / "adapter_config.json").write_text("{")


def _binary_description(folder):
    (folder / "description.txt").write_bytes(b"\xff\xfe")


ODD = {
    "rank": (_other_rank, "rank is 1, that of most others 2"),
    "modules": (_other_modules, "names is ('q_proj',), that of most others ('q_proj', 'v_proj')"),
    "base": (_other_base, "adapts the base model org/other, most others org/tiny"),
    "nan": (_nan, "finite"),
    "inf": (_infinite, "finite"),
    "cut": (_cut, "adapter_model.safetensors"),
    "untrained": (_untrained, "every A or B is zero"),
    "config": (_no_json, "adapter_config.json"),
    "description": (_binary_description, "description.txt: not UTF-8"),
}


@pytest.mark.parametrize(("damage", "message"), ODD.values(), ids=ODD)
def test_odd_and_damaged_adapters_are_named_and_left_out(tmp_path, damage, message):
    folder = save_library(tmp_path / "library")
    damage(folder / "beta")
    with pytest.warns(UserWarning, match="1 of 5 adapters are left out, 4 are left") as caught:
        library = opened(folder, tmp_path)
    assert message in str(caught[0].message)
    assert "beta" in str(caught[0].message)
    assert "beta" not in {entry.name for entry in library.entries}
    assert len(library[:]) == 4


def test_a_library_of_no_one_kind_is_refused(tmp_path):
    folder = save_library(tmp_path / "library", random_adapters(2))
    _other_rank(folder / "beta")
    with pytest.raises(UserError, match=r"two adapters or more, and most of them, must be of one kind; .*rank is"):
        opened(folder, tmp_path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("made", ["missing", "empty", "one"])
def test_a_folder_without_enough_adapters_is_refused(tmp_path, made):
    folder = tmp_path / "library"
    if made == "empty":
        folder.mkdir()
    if made == "one":
        save_library(folder, random_adapters(1))
    with pytest.raises(UserError, match=str(folder)):
        opened(folder, tmp_path)


def test_an_adapter_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    folder = save_library(tmp_path / "library")
    read = module.load_peft

    def slowly(path):
        adapter = read(path)
        if path.name == "gamma":
            save_peft(random_adapters(1, seed=7)[0], path, base_model="org/tiny", replace=True)
        return adapter

    monkeypatch.setattr(module, "load_peft", slowly)
    with pytest.warns(UserWarning, match=r"gamma: adapter_model\.safetensors changed while it was read"):
        opened(folder, tmp_path)


def test_one_that_changes_between_the_check_and_the_copy_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    folder = save_library(tmp_path / "library")
    pack = module._pack

    def later(*given):
        save_peft(random_adapters(1, seed=7)[0], folder / "gamma", base_model="org/tiny", replace=True)
        pack(*given)

    monkeypatch.setattr(module, "_pack", later)
    with pytest.raises(UserError, match=r"gamma: adapter_model\.safetensors changed while it was read"):
        opened(folder, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_weights_that_never_differ_have_no_z_score(tmp_path):
    adapters = random_adapters(5)
    adapters.weights["v_proj"]["a"] = adapters.weights["v_proj"]["a"].at[:, 1, 0, 3].set(0.5)
    library = opened(save_library(tmp_path / "library", adapters), tmp_path)
    with pytest.raises(UserError, match="some weights of v_proj's A are the same in all 5 adapters"):
        library.statistics()


def test_what_a_config_says_of_the_base_counts(tmp_path):
    """Even where the weights are the same."""
    folder = save_library(tmp_path / "library")
    path = folder / "alpha" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.warns(UserWarning, match="alpha: adapts the base model None"):
        opened(folder, tmp_path)
