"""The paper's hypernetwork for Mistral-7B-Instruct-v0.2, head L, M or S, trained by SFT on 479 tasks.

Row:     SFT T2L (L, M, S) on the unseen benchmarks

Command: t2l train experiments/recipes/paper_mistral.py --tasks REGISTRY --out runs/paper_mistral
             [--hypernet.head M]                                             (the original: 5 days of an H100)
         Add --dry-run to see what it downloads and the memory that it needs.
Answer:  docs/paper.md says where it differs from the original, and how each table of the paper is made from it

REGISTRY is the original's folder tasks/, without the ten tasks that the benchmarks contain and the eleven kept for
validation, as in the original's list. t2l_jax/training/paper.py has all that the three base LLMs share.
"""

from t2l_jax.training.paper import paper_recipe

RECIPE = paper_recipe("mistralai/Mistral-7B-Instruct-v0.2", latent=128, head_in=512)
