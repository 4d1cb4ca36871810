"""How many training tasks does it take: 8, 32, 128, or all 3,169 of the family, with equally many steps?

Command: python -m experiments.studies.tasks                                           (4 minutes on an H200)
Answer:  the more the better on unseen combinations; eight tasks are learned by heart (results/tasks)

Compare the unseen combinations: the seen tasks of each row are those that it was trained on. A step is 8 tasks of 512
tokens, since eight tasks cannot fill more.
"""

from dataclasses import replace

import tyro

from experiments.tools.study import RECIPE, Study, conduct

COUNTS = {"8": 8, "32": 32, "128": 128, "all": None}
SHAPE = replace(RECIPE.batch, tasks=8, rows=8)
VARIANTS = {
    label: replace(RECIPE, selection=replace(RECIPE.selection, most=count), batch=SHAPE)
    for label, count in COUNTS.items()
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "tasks", "training tasks", VARIANTS)
