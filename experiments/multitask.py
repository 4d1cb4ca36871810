"""One LoRA for all the tasks that the hypernetwork is trained on, by the same step on the same batches.

Run:    t2l train experiments/multitask.py --out runs/multitask9 --tasks family FOLDER --task-weights 4 1
Then:   t2l evaluate MODEL --tasks family --multitask runs/multitask9/adapters
Time:   9 minutes for 3,000 steps on an H200 that trained the hypernetwork at the same time, 3.5 alone
Result: MULTITASK_RESULT

FOLDER holds real tasks. Recipe and seed are those of the last stage in smollm2_family.py, so that both learn from the
same examples in the same order; the learning rate is a LoRA's own. (The hypernetwork had stages before, with a seventh
of as many tokens.)
"""

from t2l_jax.baselines import TaskChoice
from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    producer="multitask",
    tasks=("family",),
    choice=TaskChoice(wordings=16),
    instruction_share=0.25,
    batch=BatchConfig(tasks=64, rows=1, length=256),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.04, decay="cosine"),
    loop=LoopConfig(steps=3000, seed=9, log_every=25, validate_every=1000, checkpoint_every=1000),
)
