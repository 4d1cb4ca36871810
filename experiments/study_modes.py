"""What does an instruction in the prompt change? The same training with the instance alone, and after an instruction.

Command: python experiments/study_modes.py --steps 60
Result:  results/study_modes.md, 60 steps: cross-entropy on unseen combinations 1.67 with the instance alone, 1.53 with
         an instruction before it

Each row is validated in the mode that it was trained in, on as many test examples as fit. Rows have 72 tokens, since
instructions are long; the instance alone then has three examples of a task in a row.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

if __name__ == "__main__":
    shares = {"instance only": 0.0, "with instruction": 1.0}
    shape = replace(RECIPE.batch, length=72)
    variants = {label: replace(RECIPE, instruction_share=share, batch=shape) for label, share in shares.items()}
    conduct(tyro.cli(Study), "prompt", variants)
