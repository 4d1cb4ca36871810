"""Which hypernetwork? L, M and S of the paper on the grown family.

Command: python experiments/study_heads.py
Result:  results/study_heads.md, 300 steps, exact answers on unseen combinations: L 40.8%, M 41.3, S 31.5. L and M are
         not told apart there (on seen tasks, 43.9 and 40.1, they are); S, one seed, is behind
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

VARIANTS = {head: replace(RECIPE, hypernet=replace(RECIPE.hypernet, head=head)) for head in ("L", "M", "S")}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "hypernetwork", VARIANTS)
