"""Which hypernetwork? L, M and S of the paper on the word tasks.

Command: python experiments/study_heads.py
Result:  results/study_heads.md, 100 steps: cross-entropy on unseen combinations L 1.57, M 1.50, S 1.87; one seed, so M
         is not known to be better than L; S is slower by 40% and learns later
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

if __name__ == "__main__":
    variants = {head: replace(RECIPE, hypernet=replace(RECIPE.hypernet, head=head)) for head in ("L", "M", "S")}
    conduct(tyro.cli(Study), "hypernetwork", variants)
