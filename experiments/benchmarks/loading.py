"""What does loading a base model take: seconds, memory beside the parameters, and bytes read by each of several hosts?

Command: python -m experiments.benchmarks.loading                    (5 minutes on 2 cores; 9 GB of disk, 10 of memory)
Answer:  a few percent of memory beside the parameters; two hosts read half of the files each (results/loading)

Writes a random Llama of the 8B model's widths as bfloat16 safetensors into a temporary folder. Fresh processes load it:
one with one device, one with 8 fake devices that share it (fsdp 8), and two with 4 of these devices each. The files are
dropped from the page cache before each. Memory is the growth of a process's peak since its imports; what it reads is
what it asks of the files, by Linux's count.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tyro
from safetensors.numpy import save_file

from experiments.tools.results import RESULTS, write
from t2l_jax.decoder.quantized import BaseKind

LOAD = """
import sys
import time
import jax
from functools import partial
from pathlib import Path
from t2l_jax import distributed
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.sharding import make_mesh, param_sharding

folder, base, coordinator = sys.argv[1:]
distributed.start(coordinator)
place = partial(param_sharding, make_mesh(fsdp=jax.device_count())) if jax.device_count() > 1 else lambda path: None

def count(file, field):
    return int(Path(file).read_text().split(field + ":")[1].split()[0])

jax.numpy.zeros(1).block_until_ready()
memory, read, began = 1024 * count("/proc/self/status", "VmRSS"), count("/proc/self/io", "rchar"), time.monotonic()
_, params = load_base(resolve(folder), jax.numpy.bfloat16, place, base)
jax.block_until_ready(params)
seconds = time.monotonic() - began
kept = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
peak = 1024 * count("/proc/self/status", "VmHWM") - memory
print(kept, peak, count("/proc/self/io", "rchar") - read, seconds)
"""


@dataclass(frozen=True)
class Loading:
    """Measure what loading a base model takes."""

    layers: int = 14
    width: int = 4096
    base: BaseKind = "native"
    out: Path = RESULTS / "loading"


def write_model(folder: Path, num_layers: int, width: int) -> None:
    """A Llama with random weights, one shard a layer and one for what is not in a layer."""
    rng = np.random.default_rng(0)
    mlp_width, kv_width, vocab = 7 * width // 2, width // 4, 31 * width
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    attention = {"q_proj": (width, width), "k_proj": (kv_width, width), "v_proj": (kv_width, width)}
    attention = {f"self_attn.{name}": shape for name, shape in {**attention, "o_proj": (width, width)}.items()}
    mlp = {"gate_proj": (mlp_width, width), "up_proj": (mlp_width, width), "down_proj": (width, mlp_width)}
    norms = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    layer = {**attention, **{f"mlp.{name}": shape for name, shape in mlp.items()}, **norms}
    shards = [
        {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()} for index in range(num_layers)
    ]
    shards.append(
        {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width), "model.norm.weight": (width,)}
    )
    weight_map = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number:05}.safetensors"
        tensors = {name: rng.random(shape, np.float32).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, folder / file)
        weight_map.update(dict.fromkeys(shapes, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path) -> float:
    """Bytes a second that a plain read of one shard gets."""
    forget(folder)
    began = time.monotonic()
    size = len((folder / "model-00000.safetensors").read_bytes())
    return size / (time.monotonic() - began)


def load(folder: Path, base: BaseKind, processes: int, devices: int) -> list[dict[str, Any]]:
    """A row for each of the processes that load the model together."""
    forget(folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-c", LOAD, str(folder), base, address if processes > 1 else "off"]
    running = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(n)}, stdout=subprocess.PIPE, text=True)
        for n in range(processes)
    ]
    rows = []
    for number, process in enumerate(running):
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"process {number} of {processes} failed")
        kept, peak, read, seconds = map(float, said.splitlines()[-1].split())
        rows.append(
            {
                "base": base,
                "devices": devices,
                "process": f"{number + 1} of {processes}",
                "parameters, GB": round(kept / 1e9, 2),
                "peak above the imports, GB": round(peak / 1e9, 2),
                "peak / parameters": round(peak / kept, 3),
                "read, GB": round(read / 1e9, 2),
                "seconds": round(seconds, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(args: Loading) -> None:
    """Write what each process keeps, reads and takes."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("T2L_CACHE")) as name:
        folder = Path(name)
        write_model(folder, args.layers, args.width)
        size = sum(path.stat().st_size for path in folder.iterdir())
        rates = [disk_rate(folder)]
        rows = [row for case in ((1, 1), (1, 8), (2, 8)) for row in load(folder, args.base, *case)]
        rates.append(disk_rate(folder))
    spread = " and ".join(f"{rate / 1e9:.2f}" for rate in rates)
    notes = [f"the files have {size / 1e9:.2f} GB; before and after, the disk read {spread} GB a second"]
    write(args.out, {"Loading": rows}, notes)


if __name__ == "__main__":
    main(tyro.cli(Loading))
