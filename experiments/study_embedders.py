"""Which text encoder? MiniLM, MiniLM with smollm2-family's adapter, and the last token of SmolLM2, on the word tasks.

Command: python experiments/study_embedders.py
Result:  results/study_embedders.md, 100 steps: cross-entropy on unseen combinations 1.65 for MiniLM, 0.98 with the
         adapter (exact 6% and 30%), 1.89 for the last token; results/embedder_probe.txt has a linear probe

The adapter was the one packaged with stage 6's weights, trained on the grown family's wordings of that day; it has seen
none of the word tasks', but many of their operations in other words: what it says is how much is to be had from an
encoder that knows the operations.
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

from t2l_jax.baselines import TaskChoice
from t2l_jax.io.published import ENCODER_FOLDER
from t2l_jax.model import PACKAGED

if __name__ == "__main__":
    encoders = {
        "MiniLM": "minilm",
        "MiniLM with an adapter": str(PACKAGED / "smollm2-family" / ENCODER_FOLDER),
        "last token of SmolLM2": f"last-token:{RECIPE.base}",
    }
    some = TaskChoice(wordings=16)  # the last one takes a forward pass of SmolLM2 for each
    variants = {label: replace(RECIPE, encoder=encoder, choice=some) for label, encoder in encoders.items()}
    conduct(tyro.cli(Study), "text encoder", variants)
