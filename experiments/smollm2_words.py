"""The package's hypernetwork: SmolLM2-135M-Instruct on the built-in family of word tasks, instance only.

Command (about 100 minutes on two CPU cores):

    t2l train experiments/smollm2_words.py --out runs/smollm2_words

The prompt is a list of words and nothing else; what to do with it is said to the hypernetwork only. Regularisation is
that of the paper without its noise: the tasks are exact, and steps are few.
"""

from t2l_jax.hypernet import HypernetConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    tasks="words",
    prompt="instance",
    hypernet=HypernetConfig(head="L"),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup=0.05, decay="cosine", cooldown=250),
    loop=LoopConfig(
        steps=2000, stop_after=1150, tasks_per_batch=16, examples_per_task=1, validate_every=100, checkpoint_every=50
    ),
)
