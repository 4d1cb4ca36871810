"""A hypernetwork for SmolLM2 from the 3,169 training tasks of the grown family and, beside them, 114 real ones.

Run:    python experiments/wording_encoder.py --tasks FOLDER --out runs/encoder
        t2l train experiments/smollm2_family.py --out runs/family5 --start runs/family4/model --encoder runs/encoder
            --tasks family FOLDER --task-weights 20 1 --choice.wordings 16 --steps 800 --stop-after 420 --seed 5
            --optimizer.warmup 0.03 --optimizer.cooldown 120
Time:   10 minutes for the encoder's adapter, 27 for the hypernetwork, on 2 cores, after 85 of earlier stages
Result: instance only, unseen wordings, exact match on 20 tasks each: training tasks 44.2% [30.0, 58.8],
        unseen combinations 24.2% [13.8, 36.2], unseen primitives 4.6% [0.0, 11.2]; misaligned adapters and those from
        random strings 0.0 (results/smollm2_family/family.md). What does not depend on the hypernetwork, and stage 2,
        are in family_second.md: the base model with description and three examples 27.9, 22.1 and 26.7, the task's own
        LoRA 65.0 and 47.5. Word tasks (words.md; some of its unseen combinations are training tasks of the family):
        seen 59.3%, unseen combinations 56.9%. 15 unseen real tasks (real.md): 5.4 [0.7, 13.3], misaligned adapters 9.4,
        stage 2 10.9, the base model 16.3 (real_second.md): a share of real tasks of one in twenty unlearns them

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads (`use: train` only); 18 of 132 have no example
that fits. Every stage began from the weights of the one before (steps x tasks x tokens):

    1   466 x 12 x 128   from smollm2_words.py's weights, both prompt modes, family to real 3 to 1, rate 2e-4
    2   441 x 24 x 64    from here on instance only; 5 to 1, rate 3e-4: this is what was published before
    3   161 x 24 x 64    5 to 1, three times the wordings, a first adapter for the encoder
    4    76 x 24 x 64    20 to 1
    5   420 x 24 x 64    20 to 1, the final wordings and adapter

Stages 3 and 4 read 128 wordings more than there are now, 97 of them close to unseen ones; the final encoder's adapter
began from MiniLM and never saw those. Nine of the 328 unseen combinations ask what a training task of smollm2_words.py
asked; of the 20 evaluated it is one (words.last.title.hashtag).

What helped: the encoder's adapter (a linear probe finds all primitives in 63% of unseen wordings, without it in
26%, embedder_probe.py). What did not: Muon at a rate of 3e-3 (the loss rose from 0.9 to 1.9 in 75 steps). The loss
was still falling: on the batches of stage 5 from 1.05 to 0.71.
"""

from t2l_jax.data.batches import BatchConfig
from t2l_jax.objectives import SftConfig
from t2l_jax.recipe import ComputeConfig, Recipe
from t2l_jax.training import LoopConfig, OptimizerConfig

RECIPE = Recipe(
    encoder="runs/encoder",
    tasks=("family",),
    instruction_share=0.0,
    batch=BatchConfig(tasks=24, rows=1, length=64),
    sft=SftConfig(label_smoothing=0.0, neftune=0.0, lora_dropout=0.0),
    compute=ComputeConfig(precision="float32"),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0.05, decay="cosine"),
    loop=LoopConfig(steps=500, log_every=5, validate_every=500, checkpoint_every=50),
)
