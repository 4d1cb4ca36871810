"""How many descriptions of each task does it take? 1, 4, 16 and 64 of each of the 280 word tasks.

Command: python experiments/study_wordings.py
Result:  results/study_wordings.md, 100 steps: cross-entropy on unseen combinations 1.70, 1.65, 1.65 and 1.57: more
         wordings do better, though in 1,600 draws a task comes six times, so that 16 and 64 are hardly told apart

Validation reads wordings that are in no training description, of seen tasks and of unseen combinations.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

from t2l_jax.baselines import TaskChoice

if __name__ == "__main__":
    counts = {"1": 1, "4": 4, "16": 16, "all 64": None}
    variants = {label: replace(RECIPE, choice=TaskChoice(wordings=count)) for label, count in counts.items()}
    conduct(tyro.cli(Study), "descriptions", variants)
