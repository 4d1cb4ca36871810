"""How much memory does loading a base model take beside the parameters themselves?

Command: python -m experiments.benchmarks.loading_memory             (17 s on 2 cores; --layers 1 is a tenth of it)
Answer:  a few percent (results/loading_memory)

Writes a random Llama of some 2 GB as sharded safetensors into a temporary folder, loads it in a fresh process, and
compares the growth of that process's peak resident memory since its imports with the size of the parameters.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from safetensors.numpy import save_file

from experiments.tools.results import RESULTS, write
from t2l_jax.decoder.quantized import BaseKind

WIDTH, MLP_WIDTH, VOCAB = 2048, 5632, 16_000

LOAD = """
import sys
import jax
from pathlib import Path
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve

def memory(field):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(field + ":")[1].split()[0])

jax.numpy.zeros(1).block_until_ready()
before = memory("VmRSS")
_, params = load_base(resolve(sys.argv[1]), base=sys.argv[2])
print(sum(leaf.nbytes for leaf in jax.tree.leaves(params)), memory("VmHWM") - before)
"""


@dataclass(frozen=True)
class LoadingMemory:
    """Measure the peak memory of loading a base model."""

    layers: int = 10
    base: BaseKind = "native"
    out: Path = RESULTS / "loading_memory"


def write_model(folder: Path, num_layers: int) -> None:
    """A Llama with random float32 weights, one shard a layer and one for what is not in a layer."""
    rng = np.random.default_rng(0)
    config = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    attention = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    mlp = {"gate_proj": (MLP_WIDTH, WIDTH), "up_proj": (MLP_WIDTH, WIDTH), "down_proj": (WIDTH, MLP_WIDTH)}
    norms = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
    layer = {**attention, **{f"mlp.{name}": shape for name, shape in mlp.items()}, **norms}
    shards = [
        {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()} for index in range(num_layers)
    ]
    shards.append(
        {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    )
    weight_map = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number:05}.safetensors"
        save_file({name: rng.random(shape, np.float32) for name, shape in shapes.items()}, folder / file)
        weight_map.update(dict.fromkeys(shapes, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def main(args: LoadingMemory) -> None:
    """Write the size of the parameters, the growth of the peak, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), args.layers)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, folder, args.base], capture_output=True, text=True, check=True
        )
    size, peak = map(int, done.stdout.split())
    gigabytes = {"parameters, GB": round(size / 1e9, 2), "peak above the imports, GB": round(peak / 1e9, 2)}
    write(
        args.out, {"Loading": [{"layers": args.layers, "base": args.base, **gigabytes, "ratio": round(peak / size, 3)}]}
    )


if __name__ == "__main__":
    main(tyro.cli(LoadingMemory))
