"""The multi-task baseline: one LoRA for all the tasks that the hypernetwork is trained on, on the same batches.

Command: t2l train experiments/recipes/multitask.py --out runs/multitask --tasks family FOLDER --task-weights 4 1
         t2l evaluate MODEL --tasks family --multitask runs/multitask/adapters        (9 minutes of an H200 to train)
Answer:  it does not do the family's tasks from the instance alone, and on unseen real tasks it is close to the
         hypernetwork's adapters (results/family_both, results/real_many, results/real_many_instruction)

FOLDER holds real tasks. Batches and seed are those of smollm2_family.py, so that both learn from the same examples in
the same order (the hypernetwork had stages before); the learning rate is a LoRA's own.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import Recipe

RECIPE = Recipe(
    trainee="multitask",
    tasks=("family",),
    selection=TaskSelection(wordings=16),
    instruction_share=0.25,
    batch=BatchConfig(tasks=64, rows=1, length=256),
    objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.04, decay="cosine"),
    loop=LoopConfig(steps=3000, seed=9, log_every=25, validate_every=1000, checkpoint_every=1000),
)
