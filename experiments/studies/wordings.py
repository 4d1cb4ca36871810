"""How many descriptions of each task does it take? 1, 4, 16 and 64 of each of 256 tasks of the grown family.

Command: python experiments/study_wordings.py
Result:  results/study_wordings.md, 300 steps, cross-entropy on seen tasks in unseen wordings 2.8, 1.4, 0.9 and 0.9, on
         unseen combinations 4.1, 3.0, 2.2 and 2.1. Of 16 wordings that is one run: the other's loss jumped from 2 to 8
         at step 70 and ended at 2.7 and 3.5, which is in the table's mean

Descriptions are read by plain MiniLM, which has learned to read through none of their wordings. Validation reads
wordings that are in no training description, of seen tasks and of unseen combinations.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

from t2l_jax.training.baselines import TaskChoice

VARIANTS = {
    str(count): replace(RECIPE, encoder="minilm", choice=TaskChoice(most=256, wordings=count))
    for count in (1, 4, 16, 64)
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "descriptions", VARIANTS)
