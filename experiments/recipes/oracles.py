"""60 oracles of the grown family: one LoRA for each of 20 tasks of every split, all at once.

Run:    t2l train experiments/oracles.py --out runs/oracles9 --compute.precision products
Then:   t2l evaluate MODEL --tasks family --max-tasks 20 --oracles runs/oracles9/adapters
Time:   14 minutes on 2 cores with AMX, half of it beside tests
Result: 75.0% of the answers of the training tasks, 62.5% of the unseen combinations' and 62.5% of the unseen
        primitives' are right with the instance alone (results/smollm2_family/family_both.md)

Every task comes in every step, so that no optimiser step moves an oracle without a gradient of its own. The tasks are
those that an evaluation with --max-tasks 20 asks. Unseen combinations and primitives are trained on here alone: an
oracle says what a LoRA can do that has seen the task's own examples.

What rank? 16 oracles after 45 steps: cross-entropy on test examples 0.198, 0.194, 0.187 and 0.186 with ranks 2, 4, 8
and 16; the higher the rank, the faster at first (results/ranks.txt). The package's hypernetwork writes rank 8: with 16
its head would be twice as large, past 20 MB.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.baselines import TaskChoice
from t2l_jax.training.objectives.sft import SftConfig
from t2l_jax.training.recipe import Recipe

RECIPE = Recipe(
    producer="oracles",
    tasks=("family",),
    choice=TaskChoice(splits=("train", "unseen combinations", "unseen primitives"), most=20),
    instruction_share=0.5,
    batch=BatchConfig(tasks=60, rows=1, length=128),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, decay="cosine"),
    loop=LoopConfig(steps=60, validate_every=60, checkpoint_every=20),
)
