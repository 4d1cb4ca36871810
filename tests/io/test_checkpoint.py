from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t2l_jax.errors import UserError
from t2l_jax.io.checkpoint import CHECKSUMS, Checkpoints
from t2l_jax.sharding import make_mesh


def state(value: float) -> dict:
    return {"step": jnp.asarray(value, jnp.int32), "w": jnp.arange(16.0).reshape(8, 2) * value}


def assert_equal(first: dict, second: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_without_a_checkpoint_the_state_is_the_one_given(tmp_path):
    given = state(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(given) is given


def test_the_newest_is_restored_and_old_ones_go(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(3))


def test_saving_an_earlier_step_deletes_later_ones(tmp_path):
    """They are of a course that the run has left."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 5, 3):
            checkpoints.save(step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(3))


def test_a_state_may_be_donated_as_soon_as_it_is_saved(tmp_path):
    saved = state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
        jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0 - 1, x), donate_argnums=0)(saved)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(1))


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    (tmp_path / "2.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(1))


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def largest_file(folder: Path) -> Path:
    return max(
        (path for path in (folder / "default").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


@pytest.mark.parametrize("how", ["missing", "truncated", "changed"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capfd, how):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    spoil(largest_file(tmp_path / "2"), how)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(1))
        checkpoints.save(2, state(5))  # there is room for it again
    said = capfd.readouterr().err
    assert f"{tmp_path}/2 is damaged (default/" in said
    assert "resuming from step 1" in said
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged"]


def test_when_all_are_damaged_nothing_is_begun_anew(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    for step in ("1", "2"):
        spoil(largest_file(tmp_path / step), "truncated")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint can be read"):
        checkpoints.restore_latest(state(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    """Its run was killed right after it."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    (tmp_path / "1" / CHECKSUMS).unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore_latest(state(0)), state(1))


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_a_checkpoint_is_restored_on_any_number_of_devices(tmp_path, before, after):
    def placed(value: float, devices: int) -> dict:
        mesh = make_mesh(data=devices)
        places = {"step": NamedSharding(mesh, PartitionSpec()), "w": NamedSharding(mesh, PartitionSpec("data"))}
        return jax.device_put(state(value), places)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, placed(1, before))
    target = placed(0, after)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_latest(target)
    assert_equal(found, state(1))
    assert found["w"].sharding == target["w"].sharding


def test_a_folder_that_orbax_cannot_open_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="its name is not UTF-8, which Orbax needs"):
        Checkpoints(tmp_path / "a\udcff")
