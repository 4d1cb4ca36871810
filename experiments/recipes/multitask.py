"""One LoRA for all the tasks that the hypernetwork is trained on, by the same step on the same batches.

Run:    t2l train experiments/multitask.py --out runs/multitask9 --tasks family FOLDER --task-weights 4 1
Then:   t2l evaluate MODEL --tasks family --multitask runs/multitask9/adapters
Time:   9 minutes for 3,000 steps on an H200 that trained the hypernetwork at the same time (90,000 tokens a second;
        208,000 alone, in 150 steps that were not kept)
Result: cross-entropy 1.41 (the hypernetwork: 0.40). Of the family 2.5, 0.0 and 2.5% (training
        tasks, unseen combinations, unseen primitives) with the instance alone, which does not say what is asked, and
        32.5, 25.0 and 2.5 with instruction (results/smollm2_family/family_both.md).
        On 15 unseen real tasks 19.6 [6.7, 35.6] instance only, the hypernetwork's adapters 22.5 (real_many.md); with
        instruction, 40 examples, 22.1 and those 22.8 (real_many_instruction.md); on eight examples 18.2 [5.8, 33.4] and
        21.7 [9.7, 36.2], those 21.5 and 21.3 (results/smollm2_family/real.md)

FOLDER holds real tasks. Recipe and seed are those of the last stage in smollm2_family.py, so that both learn from the
same examples in the same order; the learning rate is a LoRA's own. (The hypernetwork had stages before, with a sixth of
as many tokens.)
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.baselines import TaskChoice
from t2l_jax.training.objectives.sft import SftConfig
from t2l_jax.training.recipe import Recipe

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
