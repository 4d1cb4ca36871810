"""The paper's hypernetwork for Gemma-2-2b-it, head L, M or S, trained by SFT on 479 tasks.

Row:     SFT T2L in the appendix's table of this base LLM

Command: t2l train experiments/recipes/paper_gemma.py --tasks REGISTRY --out runs/paper_gemma
             [--hypernet.head M]                                             (the original: 5 days of an H100)
         Add --dry-run to see what it downloads and the memory that it needs.
Answer:  docs/paper.md says where it differs from the original, and how each table of the paper is made from it

REGISTRY is the original's folder tasks/, without the ten tasks that the benchmarks contain and the eleven kept for
validation, as in the original's list. t2l_jax/training/paper.py has all that the three base LLMs share.
"""

from t2l_jax.training.paper import paper_recipe

RECIPE = paper_recipe("google/gemma-2-2b-it", latent=512, head_in=2048)
