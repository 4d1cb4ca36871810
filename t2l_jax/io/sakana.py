"""Checkpoints of the original Text-to-LoRA (SakanaAI/text-to-lora) as published hypernetworks of ours.

A folder holds `hypermod.pt` (a state dict), `args.yaml` (all training flags) and `adapter_config.json` (PEFT's). In a
run folder there are checkpoints/it_N/hypermod.pt, too, with the other two files two levels up.

Modules in the original follow a Python set, whose order is another in every process and written nowhere. It is also the
order of the heads in the state dict, from which it is recovered.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.files import atomic_folder, check_name, refuse_existing
from t2l_jax.io.locations import HUB_NAME
from t2l_jax.io.peft import CONFIG_FILE
from t2l_jax.io.published import (
    IDENTITIES_FILE,
    MODEL_FOLDER,
    ModelConfig,
    Reads,
    model_card,
    save_model,
    tensor_shapes,
    with_tensors,
)
from t2l_jax.io.sakana_chat import template_for
from t2l_jax.io.sakana_layout import TYPES, check, layout, to_ours
from t2l_jax.io.torch_file import load_state_dict
from t2l_jax.io.yaml_file import read_yaml
from t2l_jax.lora import PROJECTIONS, LoraModule, LoraSpec
from t2l_jax.schema import Count, Positive, Schema, Several, Text, Width, checked, shown

WEIGHTS_FILE, ARGS_FILE = "hypermod.pt", "args.yaml"
LAST_TOKEN = "last-token:"  # before the base model's location, where the original embeds with the base model itself
# Text encoders whose first token the original reads, as do their own files. It reads the first token of every model
# with "gte" in its name, and knows no pooling for others (but for SFR's, which it gives a prompt and 16 bits).
ENCODERS = ("Alibaba-NLP/gte-large-en-v1.5", "Alibaba-NLP/gte-base-en-v1.5")

Tensors = Mapping[str, np.ndarray]


class Args(Schema):
    """The flags in `args.yaml` that a checkpoint's adapters depend on."""

    training_task: Literal["sft", "recon"]
    model_dir: Text
    target_modules: Several[str]
    emb_model: str | None = None
    use_one_hot_task_emb: bool = False
    train_ds_names: Several[Text] | None = None
    n_train_ds: Count | None = None
    hypernet_latent_size: Annotated[int, Field(ge=4, le=2**20, multiple_of=4)]
    head_in_size: Width
    shared_AB_head: bool
    autoreg_gen: bool
    learnable_pos_emb: bool
    pred_z_score: bool
    factorized: bool = False
    delta_w_scaling: Positive = 10_000.0
    mt_lora_path: str | None
    learnable_AB_offset: bool = False

    @property
    def head(self) -> Literal["L", "M", "S"]:
        if not self.shared_AB_head:
            return "L"
        return "S" if self.autoreg_gen else "M"

    @property
    def has_bias(self) -> bool:
        """Whether the heads have a bias; the flag `head_use_bias` says nothing."""
        return self.mt_lora_path is None if self.training_task == "sft" else not self.pred_z_score

    @property
    def writes_delta(self) -> bool:
        """Whether it was trained on delta W, so that A and B are divided by sqrt(delta_w_scaling)."""
        return self.training_task == "recon" and not self.factorized

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.train_ds_names or ())[: self.n_train_ds]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as ours: configuration, tensors, and the tasks of one that reads one-hot task identities."""

    config: ModelConfig
    tensors: dict[str, np.ndarray]
    tasks: tuple[str, ...] | None


def import_sakana(folder: Path, out: Path) -> ModelConfig:
    """Write the checkpoint of a folder as a published hypernetwork, in float32.

    A model of one-hot task identities becomes a run folder, with their names beside the model. Raises UserError for a
    checkpoint that is damaged or has no equal here, and if `out` exists.
    """
    refuse_existing(out)
    found = read_sakana(folder)
    card = model_card(found.config, "Trained with the authors' code, SakanaAI/text-to-lora, and imported.")
    template = template_for(found.config.base_name)
    if template is None:
        warnings.warn(
            f"the chat template that the authors trained {found.config.base_name} with is not known: prompts will be "
            "written with the base model's own, which may cost some accuracy",
            stacklevel=2,
        )
    variables = with_tensors(found.tensors, found.config.lora)
    with atomic_folder(out) as partial:
        target = partial if found.tasks is None else partial / MODEL_FOLDER
        save_model(target, found.config, variables, card, np.float32, chat_template=template)
        if found.tasks is not None:
            (partial / IDENTITIES_FILE).write_text(json.dumps({"tasks": list(found.tasks)}, indent=2) + "\n")
    return replace(found.config, chat_template=template is not None)


def read_sakana(folder: Path) -> Checkpoint:
    """Read a folder of the original's. Raises UserError as `import_sakana` does."""
    weights, run = folder / WEIGHTS_FILE, folder
    if not (run / ARGS_FILE).exists() and folder.resolve().parent.name == "checkpoints":
        run = folder.resolve().parents[1]
    args = checked(Args, read_yaml(run / ARGS_FILE, typed=True), str(run / ARGS_FILE))
    _refuse_forms(args, str(run / ARGS_FILE))
    adapter = AdapterConfig.read(run / CONFIG_FILE)
    theirs = load_state_dict(weights)
    _refuse_encoders(theirs, weights)
    order = _module_order(theirs, weights)
    _same_modules(order, args, adapter, run)
    spec = _spec(order, theirs, adapter, weights, run)
    net = _hypernet(args, theirs, weights)
    config = _model_config(args, adapter, net, spec, run)
    shapes = tensor_shapes(config)
    entries = layout(net, spec, shapes)
    check(entries, theirs, str(weights))
    tensors = to_ours(entries, _folded(args, order, spec, theirs), shapes)
    return Checkpoint(config, tensors, _tasks(args, net, run) if args.use_one_hot_task_emb else None)


def _refuse_forms(args: Args, where: str) -> None:
    """Raise UserError for what the flags ask for and no graph of ours computes."""
    if args.autoreg_gen and not args.shared_AB_head:
        raise UserError(
            f"{where}: autoreg_gen without shared_AB_head: rows of A and B from one output of the head, a form that "
            "the paper does not have, and is not imported"
        )
    if args.writes_delta and args.pred_z_score:
        raise UserError(
            f"{where}: pred_z_score with factorized false: the original cannot generate adapters from z-scores of "
            "delta W either; train with one of them"
        )


def _refuse_encoders(theirs: Tensors, weights: Path) -> None:
    """Raise UserError for a task encoder other than the linear one. The flag encoder_type says nothing about it."""
    others = [key for key in theirs if key.startswith(("task_encoder.embed", "task_encoder.mlp.3."))]
    if others:
        raise UserError(
            f"{weights}: holds {others[0]:.60}: a discrete, vq or softmax task encoder, which the original's scripts "
            "cannot make, and is not imported; the linear one is"
        )


def _module_order(theirs: Tensors, weights: Path) -> list[str]:
    """The modules in the order of the rows of `layer_type_encoder`."""
    heads = [key.split(".")[1] for key in theirs if key.startswith("heads.") and key.endswith(".weight")]
    sides = [key.split(".")[1] for key in theirs if key.startswith("out_emb.") and key.endswith(".A")]
    if not heads:
        raise UserError(f"{weights}: holds no heads, as a hypernetwork of the original does (heads.<module>.weight)")
    groups = list(dict.fromkeys(key.split(".")[0] for key in theirs))
    if len(heads) > 1 and groups[-1] != "heads":
        raise UserError(
            f"{weights}: its tensors were put in another order, so which row of {TYPES} belongs to which module is "
            "lost: give the file as the original wrote it"
        )
    if sides and sides != heads:
        raise UserError(
            f"{weights}: the modules of heads are {', '.join(heads)[:200]}, those of out_emb {', '.join(sides)[:200]}: "
            "give the file as the original wrote it, whose order tells the modules apart"
        )
    return heads


def _same_modules(order: list[str], args: Args, adapter: AdapterConfig, run: Path) -> None:
    """Raise UserError unless all files name the same modules, each of which can have an adapter."""
    for name in order:
        if name not in PROJECTIONS:
            raise UserError(f"{run}: adapts {name:.100}, only {', '.join(PROJECTIONS)} can be adapted")
    targets = adapter.options.target_modules
    named = {ARGS_FILE: args.target_modules, CONFIG_FILE: targets}
    for file, names in named.items():
        if not isinstance(names, tuple) or set(names) != set(order):
            raise UserError(
                f"{run / file}: field target_modules is {shown(names)}, the heads in {WEIGHTS_FILE} are for "
                f"{', '.join(order)}: the files are of different models"
            )


def _spec(order: list[str], theirs: Tensors, adapter: AdapterConfig, weights: Path, run: Path) -> LoraSpec:
    """The adapters' shape, from the offsets, which are always there, and their scale."""
    options, config = adapter.options, run / CONFIG_FILE
    for name in ("rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if value := getattr(options, name):
            raise UserError(
                f"{config}: the option {name} = {shown(value)} is not supported here: one LoRA for all layers"
            )
    if options.lora_alpha <= 0:
        raise UserError(f"{config}: field lora_alpha must be above 0, got {options.lora_alpha:g}")
    modules, layers = [], 0
    for name in order:
        sides = [theirs.get(f"AB_offset.{side}.{name}") for side in "AB"]
        shapes = [() if side is None else side.shape for side in sides]
        if any(len(shape) != 3 or 0 in shape for shape in shapes):
            raise UserError(
                f"{weights}: AB_offset.A.{name} and AB_offset.B.{name} must be [layers, r, in], [layers, out, r]"
            )
        (layers, rank, d_in), (_, d_out, _) = shapes
        if rank != options.r:
            raise UserError(f"{weights}: its adapters have rank {rank}, {config} says r = {options.r}")
        modules.append(LoraModule(name, d_in, d_out))
    rslora = bool(options.use_rslora)
    return LoraSpec(tuple(modules), layers, options.r, float(options.lora_alpha), rslora)


def _hypernet(args: Args, theirs: Tensors, weights: Path) -> HypernetConfig:
    first = theirs.get("task_encoder.mlp.0.weight")
    if first is None or first.ndim != 2:
        raise UserError(f"{weights}: holds no task encoder (task_encoder.mlp.0.weight): it reads no text and no task")
    offset: Literal["none", "frozen", "learned"] = "none"
    if not args.writes_delta and any(theirs[key].any() for key in theirs if key.startswith("AB_offset.")):
        offset = "learned" if args.learnable_AB_offset else "frozen"
    net = HypernetConfig(
        task=TaskEncoderConfig(dim=first.shape[1]),
        head=args.head,
        latent=args.hypernet_latent_size,
        head_in=args.head_in_size,
        rotary_rows=args.head == "S" and not args.learnable_pos_emb,
        init="sft" if args.training_task == "sft" else "reconstruction",
        head_bias="separate" if args.head == "L" else "shared",
        linear_init="uniform",
        embedding_init="unit",
        standardised=args.training_task == "recon" and args.factorized and args.pred_z_score,
        offset=offset,
    )
    return net if args.has_bias else replace(net, head_bias="none")


def _model_config(args: Args, adapter: AdapterConfig, net: HypernetConfig, spec: LoraSpec, run: Path) -> ModelConfig:
    name = adapter.options.base_model_name_or_path or args.model_dir
    if Path(args.model_dir).is_dir():
        base = str(Path(args.model_dir).resolve())
    elif HUB_NAME.fullmatch(args.model_dir):
        base = f"hf:{args.model_dir}"
    else:
        raise UserError(
            f"{run / ARGS_FILE}: field model_dir is {shown(args.model_dir)}, no folder and no name on the hub"
        )
    if HUB_NAME.fullmatch(name) and HUB_NAME.fullmatch(args.model_dir) and name != args.model_dir:
        raise UserError(
            f"{run}: {ARGS_FILE} is for {args.model_dir}, {CONFIG_FILE} for {name}: they are of different runs"
        )
    if args.use_one_hot_task_emb:
        encoder = None
    elif not args.emb_model:
        encoder = LAST_TOKEN + base
    elif args.emb_model in ENCODERS:
        encoder = f"hf:{args.emb_model}"
    else:
        raise UserError(
            f"{run / ARGS_FILE}: field emb_model is {shown(args.emb_model)}, which the original reads in a way that no "
            f"text encoder here does; {', '.join(ENCODERS)} and the base model itself are known"
        )
    reads: Reads = "identity" if encoder is None else "description"
    return ModelConfig(net, spec, encoder, base, name, "definition", reads=reads)


def _tasks(args: Args, net: HypernetConfig, run: Path) -> tuple[str, ...]:
    tasks = tuple(check_name(name) for name in args.tasks)
    if len(tasks) != net.task.dim or len(set(tasks)) != len(tasks):
        raise UserError(
            f"{run / ARGS_FILE}: field train_ds_names has {len(set(tasks))} tasks, {WEIGHTS_FILE} reads {net.task.dim} "
            "one-hot identities: the files are of different runs"
        )
    return tasks


def _folded(args: Args, order: list[str], spec: LoraSpec, theirs: Tensors) -> Tensors:
    """The tensors with modules in the order of ours, and the heads' share of the scale of delta W."""
    changed = {**theirs, TYPES: theirs[TYPES][[order.index(name) for name in spec.names]]}
    if args.writes_delta:
        scale = np.float32(1 / math.sqrt(args.delta_w_scaling))
        changed |= {key: tensor * scale for key, tensor in theirs.items() if key.startswith("heads.")}
    return changed
