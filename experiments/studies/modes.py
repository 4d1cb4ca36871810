"""What does an instruction in the prompt change? The same training with the instance alone, and after an instruction.

Command: python experiments/study_modes.py
Result:  results/study_modes.md, 300 steps, exact answers on unseen combinations: 45.9% with the instance alone, 43.1
         with an instruction, cross-entropy 0.59 and 0.61 (the two seeds' ranges of the latter overlap); on unseen
         primitives the instruction helps: 2.51 and 2.20 (they do not)

Each row is validated in the mode that it was trained in, on as many test examples as fit. Rows have 128 tokens, since
instructions are long; the instance alone then has more examples of a task in a row.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

SHARES = {"instance only": 0.0, "with instruction": 1.0}
SHAPE = replace(RECIPE.batch, length=128)
VARIANTS = {label: replace(RECIPE, instruction_share=share, batch=SHAPE) for label, share in SHARES.items()}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "prompt", VARIANTS)
