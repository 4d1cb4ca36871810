"""What does an instruction in the prompt change: training with the instance alone, or after an instruction?

Command: python -m experiments.studies.modes                                           (4 minutes on an H200)
Answer:  little on unseen combinations; it lowers the cross-entropy of unseen primitives (results/modes)

Each row is validated in the mode that it was trained in, on as many test examples as fit. Rows have 128 tokens, since
instructions are long; the instance alone then has more examples of a task in a row.
"""

from dataclasses import replace

import tyro

from experiments.tools.study import RECIPE, Study, conduct

SHARES = {"instance only": 0.0, "with instruction": 1.0}
SHAPE = replace(RECIPE.batch, length=128)
VARIANTS = {label: replace(RECIPE, instruction_share=share, batch=SHAPE) for label, share in SHARES.items()}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "modes", "prompt", VARIANTS)
