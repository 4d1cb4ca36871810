"""How many training tasks does it take? 8, 32, 128 and all 3,169 of the grown family, as many steps each.

Command: python experiments/study_tasks.py
Result:  results/study_tasks.md, 300 steps, exact answers on unseen combinations: 1.0, 2.0, 5.7 and 8.3%, cross-entropy
         8.3, 4.7, 1.9 and 1.2. Eight tasks are learned by heart (88% of their own), all of them are still being learned
         (14%). The two seeds' cross-entropies are far closer than the rows

What compares is the unseen combinations: the seen tasks of each row are those that it was trained on. A step is 8 tasks
of 512 tokens, since eight tasks cannot fill more; with 64 tasks of 64 tokens all tasks reach 40.8% (study_heads.py).
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

COUNTS = {"8": 8, "32": 32, "128": 128, "all": None}
SHAPE = replace(RECIPE.batch, tasks=8, rows=8)
VARIANTS = {
    label: replace(RECIPE, choice=replace(RECIPE.choice, most=count), batch=SHAPE) for label, count in COUNTS.items()
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "training tasks", VARIANTS)
