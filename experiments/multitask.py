"""One LoRA for all the tasks that the hypernetwork is trained on, by the same step on the same mixture of examples.

Run:    t2l train experiments/multitask.py --out runs/multitask --tasks family FOLDER --task-weights 3 1
Then:   t2l evaluate MODEL --tasks family --multitask runs/multitask/adapters
Result: results/smollm2_family/family.md, of a run of 70 steps (--steps 70), fewer than it needs: cross-entropy fell
        from 3.6 to 2.8 and not one answer of the family was right

FOLDER and the batches are those of the first run in smollm2_family.py; the learning rate is a LoRA's own.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import ComputeConfig, Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    producer="multitask",
    tasks=("family",),
    instruction_share=0.2,
    batch=BatchConfig(tasks=12, rows=1, length=128),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, decay="cosine"),
    loop=LoopConfig(steps=200, log_every=5, validate_every=200, checkpoint_every=50),
)
