"""Devices by name."""

import importlib.util

import jax
import pytest

from t2l_jax.errors import UserError
from t2l_jax.training import topology
from t2l_jax.training.topology import CHIPS, find_topology


def test_cpu_devices():
    found = find_topology("cpu:4")
    assert found.devices == jax.devices()[:4]
    assert found.chip.memory is None
    with pytest.raises(UserError, match="cpu:9: this process has 8 devices already"):
        find_topology("cpu:9")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "v9:2x2 is not known: write v5e:2x2, v6e:2x2, v4:2x2x1, v5p:2x2x1, h100:8, cpu:8$"),
        ("v5e", r"v5e is not known: write v5e:2x2 \(there are 2x2, 2x4, 4x4,"),
        ("v5e:16", "v5e:2x2"),
        ("v5e:4x4x4", "v5e:2x2"),
        ("v5p:4x4", r"v5p:2x2x1 \(there are"),
        ("v5e:0x4", "v5e:2x2"),
        ("cpu:2x2", "cpu:2x2 is not known: write cpu:8, the number of devices"),
        ("cpu:-1", "write cpu:8"),
        ("h100:8", "needs JAX's CUDA plugin and 8 of them.* has 0: choose a TPU, such as v5p:2x2x1, or cpu:8"),
    ],
)
def test_a_name_that_is_not_known(name, message):
    with pytest.raises(UserError, match=f"topology: {name}|{message}") as caught:
        find_topology(name)
    assert caught.match(message)


def test_without_the_tpus_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"v5e:4x4: the TPU compiler is not installed: pip install 'libtpu==0\.0\.42\.\*'"
    ):
        find_topology("v5e:4x4")


def test_a_slice_that_the_compiler_does_not_know(monkeypatch):
    asked = []

    def refuse(*args, **options):
        asked.append((args, options))
        raise RuntimeError("INVALID_ARGUMENT: not divisible\nand more")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(topology, "ENVIRONMENT", {})
    with pytest.raises(UserError, match=r"no such slice \(INVALID_ARGUMENT: not divisible\): choose 2x2x1, 2x2x2"):
        find_topology("v4:1x2x1")
    ((args, options),) = asked
    assert args == ("v4:1x2x1", "tpu")
    assert options == {"chip_config_name": "megacore", "chips_per_host_bounds": (1, 2, 1), "num_slices": 1}


def test_the_figures_of_the_chips_agree():
    """The peak is a whole number of 128 x 128 multiply-adds each cycle."""
    for name in ("v4", "v5e", "v5p", "v6e"):
        units = CHIPS[name].peak / (2 * 128**2 * CHIPS[name].clock)
        assert units == pytest.approx(round(units), rel=3e-3), name
