"""The paper's training by SFT: what the recipes of its three base LLMs have in common."""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.prompts import PromptConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training.hooks import LoopConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.optimizer import OptimizerConfig
from t2l_jax.training.recipe import LoraConfig, Recipe

# Numbers of tasks of the original's registry: those that the benchmarks contain, and those kept for validation.
CONTAMINATED = ("033", "034", "080", "081", "228", "380", "381", "1286", "1389", "1391")
VALIDATION = ("035", "039", "202", "304", "362", "614", "701", "706", "710", "726", "1557")


def paper_recipe(base: str, *, latent: int, head_in: int) -> Recipe:
    """The recipe for a base LLM of the hub, head L, at these widths of the hypernetwork.

    20,000 epochs of 479 // 8 = 59 batches are 1,180,000 steps.
    """
    return Recipe(
        base=f"hf:{base}",
        base_name=base,
        encoder="gte-large",
        tasks=("tasks",),  # the original's registry: give its folder with --tasks
        selection=TaskSelection(
            without=tuple(f"lol_{number}" for number in (*CONTAMINATED, *VALIDATION)), wordings=128
        ),
        instruction_share=1.0,
        prompts=PromptConfig(instruction="definition", answers="joined", template="original"),
        batch=BatchConfig(tasks=8, rows=1, length=512, packing=False, too_long="cut"),
        lora=LoraConfig(modules=("q_proj", "v_proj"), rank=8, alpha=16.0, rslora=True),
        hypernet=HypernetConfig(
            head="L",
            latent=latent,
            head_in=head_in,
            head_bias="shared",  # in L each of A and B has its own all the same
            linear_init="uniform",
            embedding_init="unit",
        ),
        objective=SftConfig(label_smoothing=0.1, weight_l2=1e-3, neftune=5.0, lora_dropout=0.05),
        optimizer=OptimizerConfig(learning_rate=2.5e-5, weight_decay=1e-2, clip=1.0, warmup=0.2, decay="linear"),
        loop=LoopConfig(steps=1_180_000, seed=42, log_every=100, validate_every=10_000, checkpoint_every=1_000),
    )
