"""What does an adapter written from one sentence do: SmolLM2-135M-Instruct without and with it?

Command: make demo                                               (a few minutes; 180 MB to download the first time)
         python experiments/demo.py "your own sentence" --words "tiger, apple, hammer, blue, piano"
Answer:  without it the base model talks about the words, with it most answers are exactly right

The prompt is a list of words and nothing else; the hypernetwork alone reads the task, in wordings and for combinations
of operations that it was not trained on (but for "the animal's name", which the text encoder has learned).
"""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import t2l_jax
from t2l_jax.data import words
from t2l_jax.data.family.split import combinations
from t2l_jax.decoder.generation import Sampling
from t2l_jax.evaluation.metrics import exact_match

NUM_TASKS, NUM_EXAMPLES = 6, 4


@dataclass(frozen=True)
class Demo:
    """Show a base model before and after an adapter written from one sentence."""

    description: tyro.conf.Positional[str | None] = None
    """A task in your own words. Default: some that were held out from training."""
    words: Annotated[str, tyro.conf.arg(metavar="LIST")] = "tiger, apple, hammer, blue, piano"
    """What the base model reads, with your own description."""


def main(demo: Demo) -> None:
    """Print a table: what was asked, what the model read, its answer without and with the adapter."""
    console = Console()
    console.print(
        "Loading the hypernetwork, the text encoder and the base model (the first time: 180 MB to download) ..."
    )
    model = t2l_jax.load()
    if demo.description is None:
        trained = {combination.name.replace(".", "_") for combination in combinations()["train"]}
        held_out = words.unseen_tasks(n_train=0, n_test=NUM_EXAMPLES)
        unseen = [task for task in held_out if task.name not in trained]  # of the family's tasks either
        tasks = unseen[:: len(unseen) // NUM_TASKS][:NUM_TASKS]
        descriptions = [task.unseen_descriptions[0] for task in tasks]
        examples = [task.test for task in tasks]
    else:
        descriptions, examples = [demo.description], [(words.Example(demo.words, "", ()),)]
    adapters = model.generate(descriptions)
    size = model.config.lora.size
    console.print(f"{len(descriptions)} sentences became {len(descriptions)} adapters of {size:,} weights each.")
    llm = model.load_base()
    prompts = [[example.input for example in some] for some in examples]
    short = Sampling(max_new_tokens=16)
    before, after = llm.chat(prompts, sampling=short), llm.chat(prompts, adapters, short)
    right = 0
    for description, some, plain, adapted in zip(descriptions, examples, before, after, strict=True):
        table = Table("the model reads", "without adapter", "with adapter", "wanted", title=f"“{escape(description)}”")
        for example, one, other in zip(some, plain, adapted, strict=True):
            hit = exact_match(other, example.accepted) == 1
            right += hit
            one, other, wanted = escape(one), escape(other), escape(example.output)
            table.add_row(example.input, one, f"[green]{other}" if hit else other, wanted)
        console.print(table)
    if demo.description is None:
        console.print(f"Exactly right with the adapter: {right} of {sum(map(len, examples))}.")


if __name__ == "__main__":
    main(tyro.cli(Demo))
