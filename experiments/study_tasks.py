"""How many training tasks does it take? 8, 32, 128 and all 280 word tasks, as many steps each.

Command: python experiments/study_tasks.py
Result:  results/study_tasks.md, 100 steps: eight tasks are learned by heart (88% of their answers, cross-entropy 5.8 on
         unseen combinations); the more tasks, the worse on them and the better on unseen ones (1.98, 1.80, 1.70)

What compares is the unseen combinations: the seen tasks of each row are those that it was trained on.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

from t2l_jax.baselines import TaskChoice

if __name__ == "__main__":
    counts = {"8": 8, "32": 32, "128": 128, "all": None}
    shape = replace(RECIPE.batch, rows=2)  # eight tasks cannot fill sixteen places
    variants = {label: replace(RECIPE, choice=TaskChoice(most=count), batch=shape) for label, count in counts.items()}
    conduct(tyro.cli(Study, default=Study(batch_tasks=8)), "training tasks", variants)
