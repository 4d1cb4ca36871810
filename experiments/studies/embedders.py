"""Which text encoder: MiniLM, MiniLM with the packaged adapter, or the last token of SmolLM2?

Command: python -m experiments.studies.embedders                                       (4 minutes on an H200)
Answer:  MiniLM with its adapter, by far (results/embedders)

256 tasks of the family with four descriptions each. The adapter was trained on wordings of the family, those of these
tasks too: its row says what an encoder is worth that knows what is asked.
"""

from dataclasses import replace

import tyro

from experiments.tools.study import ADAPTED, RECIPE, Study, conduct
from t2l_jax.data.selection import TaskSelection

ENCODERS = {
    "MiniLM": "minilm",
    "MiniLM with an adapter": ADAPTED,
    "last token of SmolLM2": f"last-token:{RECIPE.base}",
}
VARIANTS = {
    label: replace(RECIPE, encoder=encoder, selection=TaskSelection(most=256, wordings=4))
    for label, encoder in ENCODERS.items()
}

if __name__ == "__main__":
    conduct(tyro.cli(Study), "embedders", "text encoder", VARIANTS)
