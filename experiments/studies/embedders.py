"""Which text encoder? MiniLM, MiniLM with smollm2-family's adapter, and the last token of SmolLM2.

Command: python experiments/study_embedders.py
Result:  results/study_embedders.md, 300 steps, exact answers on seen tasks in unseen wordings and on unseen
         combinations: MiniLM 19.8 and 0.8%, with the adapter 59.0 and 17.0, last token of SmolLM2 9.0 and 1.2.
         results/embedder_probe.txt has a linear probe

256 tasks of the grown family with four descriptions each. The adapter was trained on wordings of the family, those of
these tasks too: what it says is how much is to be had from an encoder that knows what is asked.
"""

from dataclasses import replace

import tyro
from study import ADAPTED, RECIPE, Study, conduct

from t2l_jax.training.baselines import TaskChoice

ENCODERS = {
    "MiniLM": "minilm",
    "MiniLM with an adapter": ADAPTED,
    "last token of SmolLM2": f"last-token:{RECIPE.base}",
}
VARIANTS = {
    label: replace(RECIPE, encoder=encoder, choice=TaskChoice(most=256, wordings=4))
    for label, encoder in ENCODERS.items()
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "text encoder", VARIANTS)
