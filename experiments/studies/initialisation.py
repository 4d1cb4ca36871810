"""How the hypernetwork begins: our initial weights or the original's?

Command: python -m experiments.studies.initialisation --steps 50 --seeds 3              (30 minutes on 2 cores)
Answer:  see results/initialisation

The original draws the weights and biases of linear layers from U(±1/sqrt(inputs)) and its embeddings of layer, module,
side and row from N(0, 1). We drew the linear layers from a normal 1.73 times as wide, with biases of zero, and the
embeddings narrower. Both begin as the base model, since heads begin with zero weights.
"""

from dataclasses import replace

import tyro

from experiments.tools.study import RECIPE, Study, conduct
from t2l_jax.data.batches import BatchConfig
from t2l_jax.training.recipe import ComputeConfig

SMALL = replace(
    RECIPE, batch=BatchConfig(tasks=16, rows=1, length=32), compute=ComputeConfig("bf16-matmul", remat="none")
)
NET = SMALL.hypernet
VARIANTS = {
    label: replace(SMALL, hypernet=replace(NET, linear_init=linear, embedding_init=embedding))
    for label, linear, embedding in (
        ("ours before", "lecun", "narrow"),
        ("the original's", "uniform", "unit"),
    )
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "initialisation", "initial weights", VARIANTS)
