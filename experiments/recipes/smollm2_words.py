"""Can a first hypernetwork be trained on a CPU? SmolLM2-135M-Instruct on the built-in word tasks, instance only.

Command: t2l train experiments/recipes/smollm2_words.py --out runs/smollm2_words             (50 minutes on 2 cores)
Answer:  yes: half of the answers on unseen combinations are right, in unseen wordings (results/smollm2_words)

The prompt is a list of words and nothing else; the hypernetwork alone reads what to do with it. Regularisation is the
paper's without its noise, since the tasks are exact and the steps few. Higher learning rates were unsteady (4e-4) or
diverged (1e-3). The run ends before its schedule, with a cooldown.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training import LoopConfig, OptimizerConfig
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import Recipe

RECIPE = Recipe(
    tasks=("words",),
    instruction_share=0.0,
    batch=BatchConfig(tasks=16, rows=1, length=64),
    hypernet=HypernetConfig(head="L"),
    objective=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine", cooldown=250),
    loop=LoopConfig(steps=2000, stop_after=1150, validate_every=100, checkpoint_every=50),
)
