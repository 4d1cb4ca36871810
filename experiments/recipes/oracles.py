"""Task-specific LoRAs ("oracles"): one for each of 20 tasks of every split of the family, all trained at once.

Command: t2l train experiments/recipes/oracles.py --out runs/oracles --compute.precision bf16-matmul
         t2l evaluate MODEL --tasks family --max-tasks 20 --oracles runs/oracles/adapters
                                                                      (14 minutes on 2 cores with AMX to train)
Answer:  most answers are right on every split, what a LoRA can do that has seen the task's own examples
         (results/family_both; which rank: results/ranks)

Every task comes in every step, so that no step moves a LoRA that has no gradient of its own. The tasks are those that
an evaluation with --max-tasks 20 asks.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import Recipe

RECIPE = Recipe(
    trainee="oracles",
    tasks=("family",),
    selection=TaskSelection(splits=("train", "unseen combinations", "unseen primitives"), most=20),
    instruction_share=0.5,
    batch=BatchConfig(tasks=60, rows=1, length=128),
    objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, decay="cosine"),
    loop=LoopConfig(steps=60, validate_every=60, checkpoint_every=20),
)
