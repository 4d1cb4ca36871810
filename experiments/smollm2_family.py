"""A hypernetwork for SmolLM2 from the 3,169 training tasks of the grown family and, beside them, 114 real ones.

Run:    python experiments/wording_encoder.py --tasks FOLDER --out runs/encoder
        t2l train experiments/smollm2_family.py --out runs/family6 --start runs/family5/model --encoder runs/encoder
            --tasks family FOLDER --task-weights 6 1 --instruction-share 0.15 --choice.wordings 16 --steps 520 --seed 6
            --optimizer.learning-rate 2.5e-4 --optimizer.warmup 0.02 --validate-every 520
Time:   10 minutes for the encoder's adapter, 36 for the last stage, on 2 cores, after 112 of earlier stages
Result: instance only, unseen wordings, exact match on 20 tasks each: training tasks 47.5% [33.3, 61.7],
        unseen combinations 23.3% [12.5, 36.2], unseen primitives 5.8% [0.8, 12.9]; misaligned adapters and those from
        random strings 0.0 to 0.4 (results/smollm2_family/family.md; with instruction, fewer examples: family_both.md).
        The base model with description and three examples has 27.9, 22.1 and 26.7, the task's own LoRA 65.0 and 47.5
        (family_second.md). Word tasks (words.md): seen 66.4%, unseen combinations 59.5%, 59.0% on the 24 of the 35 that
        are no training task here. 15 unseen real tasks (real.md): 15.0 [4.6, 28.4] instance only, 15.0 with
        instruction, misaligned adapters 11.0 and 13.1. Ten benchmarks (benchmarks.md): 20.0 and 26.7, base model 28.3

FOLDER holds real tasks in the layout that t2l_jax/data/tasks.py reads (`use: train` only); 18 of 132 have no example
that fits. Every stage began from the weights of the one before (steps x tasks x tokens):

    1   466 x 12 x 128   from smollm2_words.py's weights, both prompt modes, family to real 3 to 1, rate 2e-4
    2   441 x 24 x 64    until stage 5 instance only; 5 to 1, rate 3e-4: published first
    3   161 x 24 x 64    5 to 1, three times the wordings, a first adapter for the encoder
    4    76 x 24 x 64    20 to 1
    5   420 x 24 x 64    20 to 1, the final wordings and adapter, cooldown 120
    6   520 x 24 x 64    6 to 1, 15% of the tasks drawn with instruction, rate 2.5e-4

Stages 3 and 4 read 128 wordings more than there are now, 97 of them close to unseen ones; the final encoder's adapter
began from MiniLM and never saw those. Nine of the 328 unseen combinations ask what a training task of smollm2_words.py
asked; of the 20 evaluated it is one (words.last.title.hashtag).

What helped: the encoder's adapter (a linear probe finds all primitives in 63% of unseen wordings, without it in 26%,
embedder_probe.py), and a rate that falls to zero: most of stages 5 and 6 was gained in their last third. One real task
in 21 (stage 5) unlearned them: 5.4 on unseen real tasks, where one in seven gives 15.0. What did not: Muon at a rate of
3e-3 (the loss rose from 0.9 to 1.9 in 75 steps); other rates for the head than for the rest (60 steps from stage 5 on
the same batches, head and rest: 3e-4 and 3e-4 end at 0.675, 5e-5 and 5e-4 at 0.684, 1e-4 and 1e-3 at 0.736). The loss
was still falling: of unseen combinations in validation from 0.735 to 0.645 in stage 6.
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
