"""A hypernetwork for SmolLM2 from thousands of built-in tasks and, beside them, real ones.

Run:    t2l train experiments/smollm2_family.py --out runs/family2 --start runs/family1
            --tasks family FOLDER --task-weights 5 1
Result: none yet: no run of it has ended

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import ComputeConfig, Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    tasks=("family",),
    instruction_share=0.0,
    batch=BatchConfig(tasks=24, rows=1, length=64),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0.05, decay="cosine"),
    loop=LoopConfig(steps=500, log_every=5, validate_every=500, checkpoint_every=50),
)
