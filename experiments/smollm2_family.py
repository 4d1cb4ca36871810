"""A hypernetwork for SmolLM2 from thousands of built-in tasks and, beside them, real ones.

Run:    t2l train experiments/smollm2_family.py --out runs/family --tasks family FOLDER --task-weights 3 1
Result: none yet: no run of it has ended

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads.

Three quarters of a batch's tasks come from the grown family, a quarter from the folder of real tasks (`use: train`
only). Four examples in five hold the instance alone, one in five has the instruction before it. A row of 128 tokens
holds three or four examples; of the real tasks' examples four in five are that short, the others are left out.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import ComputeConfig, Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    tasks=("family",),
    start="t2l_jax/models/smollm2-words",
    instruction_share=0.2,
    batch=BatchConfig(tasks=12, rows=1, length=128),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine", cooldown=150),
    loop=LoopConfig(steps=2000, log_every=5, validate_every=400, checkpoint_every=50),
)
