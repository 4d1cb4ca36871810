"""One LoRA for all training tasks of the grown family, by the step that trains the hypernetwork.

Run:    t2l train experiments/multitask.py --out runs/multitask
Then:   t2l evaluate MODEL --tasks family --multitask runs/multitask/adapters
Result: not run yet

For as many examples as a hypernetwork's run had, give its --batch.tasks, --batch.length and --steps.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    producer="multitask",
    tasks=("family",),
    batch=BatchConfig(tasks=16, rows=1, length=128),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine", cooldown=50),
    loop=LoopConfig(steps=600, validate_every=100, checkpoint_every=50),
)
