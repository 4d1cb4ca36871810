"""A library of 256 LoRAs to reconstruct: one for each of 256 training tasks of the family, all trained at once.

Command: t2l train experiments/recipes/library.py --out runs/library
         t2l train experiments/recipes/library.py --out runs/library_seeds --trainee oracles-seeds
Answer:  python -m experiments.analyses.library_scores RUN scores its tasks (25 minutes on 2 cores to train)

All LoRAs take the same steps. In the first library they start from one A, so that their factors are comparable; in the
second each starts from its own. The prompt is the instance alone: nothing but the LoRA tells the task.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import ComputeConfig, Recipe

RECIPE = Recipe(
    trainee="oracles",
    tasks=("family",),
    selection=TaskSelection(most=256),
    batch=BatchConfig(tasks=256, rows=1, length=64),
    compute=ComputeConfig(precision="bf16-matmul", remat="none", accumulate=8),
    objective=SftConfig(label_smoothing=0.0, weight_l2=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup=0.1, decay="cosine"),
    loop=LoopConfig(steps=40, log_every=1, validate_every=20, checkpoint_every=20),
)
