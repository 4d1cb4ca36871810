"""Which hypernetwork? L, M and S of the paper on the word tasks.

Command: python experiments/study_heads.py
Result:  none yet: not run
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

if __name__ == "__main__":
    variants = {head: replace(RECIPE, hypernet=replace(RECIPE.hypernet, head=head)) for head in ("L", "M", "S")}
    conduct(tyro.cli(Study), "hypernetwork", variants)
