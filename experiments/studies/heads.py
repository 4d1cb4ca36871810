"""Which hypernetwork of the paper: L, M or S?

Command: python -m experiments.studies.heads                                           (4 minutes on an H200)
Answer:  L and M are equally good on unseen combinations, S is behind (results/heads)
"""

from dataclasses import replace

import tyro

from experiments.tools.study import RECIPE, Study, conduct

VARIANTS = {head: replace(RECIPE, hypernet=replace(RECIPE.hypernet, head=head)) for head in ("L", "M", "S")}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "heads", "hypernetwork", VARIANTS)
