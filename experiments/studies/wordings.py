"""How many descriptions of each task does it take: 1, 4, 16 or 64 of each of 256 tasks of the family?

Command: python -m experiments.studies.wordings                                        (4 minutes on an H200)
Answer:  64 are far better than 4, on seen tasks and on unseen combinations; one run of 16 diverged (results/wordings)

Plain MiniLM reads the descriptions; it has learned to read through none of their wordings. Validation reads wordings
that are in no training description.
"""

from dataclasses import replace

import tyro

from experiments.tools.study import RECIPE, Study, conduct
from t2l_jax.data.selection import TaskSelection

VARIANTS = {
    str(count): replace(RECIPE, encoder="minilm", selection=TaskSelection(most=256, wordings=count))
    for count in (1, 4, 16, 64)
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "wordings", "descriptions", VARIANTS)
