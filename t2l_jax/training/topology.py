"""Devices that need not be here: those of a TPU slice or of a large host, to compile for.

`v5e:4x4` is a slice of 16 chips of TPU v5e. Its devices come from libtpu, the TPU's compiler, which runs on any x86
machine with Linux. `cpu:8` are eight devices that share this machine's CPU, `h100:8` this machine's GPUs.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from t2l_jax.errors import UserError

LIBTPU = "libtpu==0.0.42.*"  # the version that goes with jax 0.10


@dataclass(frozen=True)
class Chip:
    """What a device is, in public figures; None where it is a part of this machine."""

    memory: int | None = None  # bytes
    peak: float | None = None  # FLOP/s of dense products in bfloat16
    clock: float | None = None  # cycles/s, those in which a TPU's compiler counts
    links: float | None = None  # bytes/s to its neighbours, all links together
    shapes: str = ""  # some of the slices that exist; empty: devices are counted
    config: str = "default"  # megacore: the two cores of a chip are one device

    @property
    def axes(self) -> int:
        """Of a slice."""
        return self.example.count("x") + 1

    @property
    def example(self) -> str:
        return self.shapes.partition(",")[0] or "8"


GB = 10**9
FLAT, CUBIC = "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16", "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8"
CHIPS = {
    "v5e": Chip(16 * GB, 197e12, 1.5e9, 200e9, FLAT),
    "v6e": Chip(32 * GB, 918e12, 1.75e9, 448e9, FLAT),
    "v4": Chip(32 * GB, 275e12, 1.05e9, 300e9, CUBIC, "megacore"),
    "v5p": Chip(95 * GB, 459e12, 1.75e9, 600e9, CUBIC),
    "h100": Chip(80 * GB, 989e12, links=450e9),
    "cpu": Chip(),
}
# What libtpu asks for where there is no TPU. Any valid values do.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is touched, so none is locked
}


@dataclass(frozen=True)
class Topology:
    """Devices to compile for, and what one of them is."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]


def find_topology(name: str) -> Topology:
    """The devices of a name such as v5e:4x4. Call it before anything is computed: it may choose JAX's platform.

    Raises UserError if the name is not known, or what compiles for it is not installed.
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        raise UserError(f"topology: {name} is not known: write {', '.join(_example(kind) for kind in CHIPS)}")
    if not re.fullmatch("x".join([r"[1-9]\d{0,3}"] * chip.axes), shape):
        some = f" (there are {chip.shapes})" if chip.shapes else ", the number of devices"
        raise UserError(f"topology: {name} is not known: write {_example(kind)}{some}")
    if kind == "cpu":
        return Topology(name, chip, _cpus(int(shape)))
    if kind == "h100":
        return Topology(name, chip, _gpus(name, int(shape)))
    return Topology(name, chip, _tpus(name, chip, [int(size) for size in shape.split("x")]))


def _example(kind: str) -> str:
    return f"{kind}:{CHIPS[kind].example}"


def _cpus(count: int) -> Sequence[jax.Device]:
    with suppress(RuntimeError):  # this process has computed already
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"topology: cpu:{count}: this process has {len(devices)} devices already: ask in one of its own"
        )
    return devices[:count]


def _gpus(name: str, count: int) -> Sequence[jax.Device]:
    try:
        devices = jax.devices("cuda")
    except RuntimeError:
        devices = []
    if len(devices) < count:
        raise UserError(
            f"topology: {name}: compiling for GPUs needs JAX's CUDA plugin and {count} of them, and this machine has "
            f"{len(devices)}: choose a TPU, such as {_example('v5p')}, or cpu:{count}"
        )
    return devices[:count]


def _tpus(name: str, chip: Chip, shape: Sequence[int]) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"topology: {name}: the TPU compiler is not installed: pip install '{LIBTPU}' (for jax 0.10; no TPU needed)"
        )
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")  # where JAX itself computes: libtpu would look for a TPU
    host = (min(shape[0], 2), min(shape[1], 2), 1)
    try:
        found = topologies.get_topology_desc(
            name, "tpu", chip_config_name=chip.config, chips_per_host_bounds=host, num_slices=1
        ).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"topology: {name}: libtpu has no such slice ({reason}): choose {chip.shapes}") from error
    assert len(found) == math.prod(shape), f"{name}: {len(found)} devices"
    return found
