"""A hypernetwork for SmolLM2 from the family's training tasks and real ones: the last stage of the packaged model.

Command: t2l train experiments/recipes/smollm2_family.py --out runs/family --init-from smollm2-family
             --tasks family FOLDER --task-weights 4 1                              (10 minutes of an H200)
Answer:  with the stages before it, see results/packaged and results/family; packaged.py has all of them

FOLDER holds real tasks, each in a folder (docs/data.md). Without it (`--tasks family`, no weights) it learns from the
family alone; without --init-from it begins with fresh weights. Descriptions are read by the packaged text encoder.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.selection import TaskSelection
from t2l_jax.io.published import ENCODER_FOLDER, PRETRAINED
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import ComputeConfig, Recipe

RECIPE = Recipe(
    encoder=str(PRETRAINED / "smollm2-family" / ENCODER_FOLDER),
    tasks=("family",),
    selection=TaskSelection(wordings=16),
    instruction_share=0.25,
    batch=BatchConfig(tasks=64, rows=1, length=256),
    objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(remat="none"),
    optimizer=OptimizerConfig(learning_rate=6e-4, warmup=0.04, decay="cosine"),
    loop=LoopConfig(steps=3000, seed=9, log_every=25, validate_every=1000, checkpoint_every=1000),
)
