"""The paper's hypernetwork for Gemma-2-2b-it, head L, M or S, trained by SFT on 479 tasks.

Row:     SFT T2L in the appendix's table of this base LLM

Command: t2l train experiments/recipes/paper_gemma.py --tasks REGISTRY --out runs/paper_gemma --trust-remote-code
             [--hypernet.head M]                                             (the original: 5 days of an H100)
         Add --dry-run to see what it downloads and the memory that it needs.
Answer:  docs/paper.md says where it differs from the original, and how each table of the paper is made from it

REGISTRY is the original's folder tasks/. 20,000 epochs of 479 // 8 = 59 batches are 1,180,000 steps. Left out are the
ten tasks that the benchmarks contain, and the eleven kept for validation, as in the original's list.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.prompts import PromptConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import LoraConfig, Recipe

CONTAMINATED = ("033", "034", "080", "081", "228", "380", "381", "1286", "1389", "1391")
VALIDATION = ("035", "039", "202", "304", "362", "614", "701", "706", "710", "726", "1557")

RECIPE = Recipe(
    base="hf:google/gemma-2-2b-it",
    base_name="google/gemma-2-2b-it",
    encoder="gte-large",
    tasks=("tasks",),  # the original's registry: give its folder with --tasks
    selection=TaskSelection(without=tuple(f"lol_{number}" for number in (*CONTAMINATED, *VALIDATION)), wordings=128),
    instruction_share=1.0,
    prompts=PromptConfig(instruction="definition", answers="joined", template="original"),
    batch=BatchConfig(tasks=8, rows=1, length=512, packing=False, too_long="cut"),
    lora=LoraConfig(modules=("q_proj", "v_proj"), rank=8, alpha=16.0, rslora=True),
    hypernet=HypernetConfig(
        head="L",
        latent=512,
        head_in=2048,
        head_bias="shared",  # in L each of A and B has its own all the same
        linear_init="uniform",
        embedding_init="unit",
    ),
    objective=SftConfig(label_smoothing=0.1, weight_l2=1e-3, neftune=5.0, lora_dropout=0.05),
    optimizer=OptimizerConfig(learning_rate=2.5e-5, weight_decay=1e-2, clip=1.0, warmup=0.2, decay="linear"),
    loop=LoopConfig(steps=1_180_000, seed=42, log_every=100, validate_every=10_000, checkpoint_every=1_000),
)
