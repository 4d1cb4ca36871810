"""32 oracles of the grown family: one LoRA for each of 32 training tasks, all trained at once in one program.

Run:    t2l train experiments/oracles.py --out runs/oracles
        t2l train experiments/oracles.py --choice.splits "unseen combinations" --out runs/oracles_unseen
Then:   t2l evaluate MODEL --tasks family --oracles runs/oracles/adapters
Result: not run yet

Every task comes in every step, so that no optimiser step moves an oracle without a gradient of its own. Batch rows,
lengths and steps are those of multitask.py; a step there has 16 tasks, here 32.
"""

from t2l_jax.baselines import TaskChoice
from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    producer="oracles",
    tasks=("family",),
    choice=TaskChoice(most=32),
    batch=BatchConfig(tasks=32, rows=1, length=128),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine", cooldown=50),
    loop=LoopConfig(steps=300, validate_every=100, checkpoint_every=50),
)
