"""Which text encoder? MiniLM against the last token of SmolLM2 itself, on the word tasks.

Command: python experiments/study_embedders.py
Result:  none yet; what a linear probe reads from both is in results/embedder_probe.txt
"""

from dataclasses import replace

import tyro
from study import RECIPE, Study, conduct

if __name__ == "__main__":
    encoders = {"MiniLM": "minilm", "last token of SmolLM2": f"last-token:{RECIPE.base}"}
    variants = {label: replace(RECIPE, encoder=encoder) for label, encoder in encoders.items()}
    conduct(tyro.cli(Study), "text encoder", variants)
