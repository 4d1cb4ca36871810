"""A hypernetwork for SmolLM2 from the 3,169 training tasks of the grown family and, beside them, 124 real ones.

Run:    t2l train experiments/smollm2_family.py --out runs/family2 --start runs/family1/model --stop-after 441
            --tasks family FOLDER --task-weights 5 1
Time:   32 minutes on 2 cores beside other work, after 34 of a first run
Result: instance only, unseen wordings, exact match on 20 tasks each: training tasks 9.6% [3.8, 16.2], unseen
        combinations 7.5% [2.9, 13.3], unseen primitives 0.4% [0.0, 1.2]; misaligned adapters 0.4, 0.0, 0.0; the task's
        own LoRA 65% and 47.5% (results/smollm2_family, where the curves are too)

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads (`use: train` only); 8 of 132 have no example
that fits. It goes on from a first run, which began from the word tasks' hypernetwork (smollm2_words.py) and was:

        t2l train experiments/smollm2_family.py --out runs/family1 --start t2l_jax/models/smollm2-words
            --stop-after 466 --steps 2000 --optimizer.learning-rate 2e-4
            --instruction-share 0.2 --batch.tasks 12 --batch.length 128 --tasks family FOLDER --task-weights 3 1

Nine of the 328 unseen combinations ask what a training task of smollm2_words.py asked; of the 20 evaluated it is one
(words.last.title.hashtag, none right).

What limits it: a linear probe finds all primitives of a task in 20% of MiniLM's embeddings of unseen wordings, in 55%
of training wordings (embedder_probe.py, a fit on 4,000 descriptions), and the loss was still falling: on the batches of
the first run from 2.2 to 1.67 in 380 steps, on those of the second, instance only, from 1.55 to 1.20. Rows of 64 tokens
let three times as many tasks go by in a second as the rows of 128 of the first run, two examples of each.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import ComputeConfig, Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    tasks=("family",),
    instruction_share=0.0,
    batch=BatchConfig(tasks=24, rows=1, length=64),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0.05, decay="cosine"),
    loop=LoopConfig(steps=500, log_every=5, validate_every=500, checkpoint_every=50),
)
